"""What to label next, and the files that labellers get."""
