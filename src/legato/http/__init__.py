"""What ``client`` and ``provider`` share: a request as data, what its answer means, and when to ask again."""
