"""What a shard takes of an image: its bytes once they prove readable, or a smaller picture of it."""
