"""Every op, each declared with its derivative: elementwise, reductions, shapes, products, indexing, networks."""
