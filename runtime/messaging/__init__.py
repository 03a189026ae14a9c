"""Messages that autograd cannot carry: a mailbox, a tape of steps, and who visits the nodes."""
