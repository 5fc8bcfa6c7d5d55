"""What an attack cost: disjoint lines of lost GPU-seconds from a run's own records; and public claims against them."""
