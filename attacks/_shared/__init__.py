"""What several techniques share: the scene inside a rank, payloads and the ways in which they get there."""
