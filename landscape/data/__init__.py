"""Texts and records, where they come from, and how they become batches of tokens.

`sources` reads files, `datasets` ids and the built-in `corpora`; `records` says what one record asks and `chat` which
part of a conversation the assistant says; `encoding` makes token ids of both. `tokens` holds them as batches
(`load_data`, `TokenData`), `questions` as choices to be scored (`load_questions`, `Questions`). `batches` moves and
cuts batches of any kind.
"""
