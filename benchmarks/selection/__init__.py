"""Selection: exactness, speed and growth with the corpus."""
