"""What people are asked and what they said, in a database: no page, no model, no torch."""
