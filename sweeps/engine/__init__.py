"""What a sweep is (design), what it has (results) and how it runs (schedule)."""
