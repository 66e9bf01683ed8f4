"""What several benchmarks share: two checkouts side by side, a server to measure, and readers to load it with."""
