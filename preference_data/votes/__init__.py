"""Many annotators: their votes, how they agree, how good each is, and one verdict from them."""
