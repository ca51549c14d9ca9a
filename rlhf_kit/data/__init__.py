"""From what people have (pages, texts, chats, comparisons) to batches of tokens. Knows no model and no training."""
