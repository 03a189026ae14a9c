"""The kinds of nodes, one a file: the record, and beside it what is said of it.

`propc.ir.nodes.node` declares what every kind answers, with what holds of one that says nothing. Given: what lies below
the graph. May import: propc.fx, propc.ir.records. A node asks its graph only for what `propc.ir.nodes.node.Graph` has.
"""
