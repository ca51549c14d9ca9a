"""How good the labels are, and what they say: pure functions on arrays, without a database, a page or torch.

A preference is written as a whole number everywhere: above 0 the item's first answer is better, below 0 its second, 0 is a
tie; how far from 0 says how sure. First and second are the item's own order, never the order in which it was shown.
"""
