"""Benchmarks: measurements that need training and evaluation together, and import both."""
