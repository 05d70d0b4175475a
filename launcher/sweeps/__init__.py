"""Many runs of one config: points, their submit, their table."""
