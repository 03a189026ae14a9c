"""Messages that autograd cannot carry: a mailbox, a tape of steps, and who visits the nodes.

Given a plan and the propagators of its nodes, it runs forward, then hands messages from node to node. Who uses no
such propagator never comes here. It may import the executable and all below.
"""
