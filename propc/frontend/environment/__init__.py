"""What a traced function reaches outside of its arguments, and whether it changed."""
