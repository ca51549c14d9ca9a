"""A world so small that the best policy is known: how close do our trainers come to it, and how close do TRL's?"""
