"""The contenders of the benchmarks: the same work, done by each library as its users do it at their best."""
