"""What a base does, seen on the meta device: what it reads, and the calls that its modules get."""
