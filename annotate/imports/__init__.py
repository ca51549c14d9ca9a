"""Labels from elsewhere, read into one form of record, a dict a prompt:

id         of the prompt with its answers
prompt     messages, [{"role", "content"}, ...]
responses  [{"text", "model"}, ...], two or more, in an order of their own that says nothing
labels     [{"annotator", ...}, ...], each with one of
             strength  a whole number, above 0: the first answer is better, below 0: the second, 0: a tie;
                       with `pair`, [i, j], where there are more than two answers
             ranking   indices of `responses`, best first
           and where it is known `left`, the index of the answer that was shown on the left
"""
