"""Which array library an array belongs to."""
