"""What is in a set, for people: numbers, tables and pages."""
