"""Contexts that last: a folder of rows, the text that they stand for, and what made them.

    names      a context's name -> its folder
    files      files that are whole or not there, one writer at a time, local or remote
    segment    a run of chunks: rows, token ids and text, in two files that never change
    manifest   a context: its settings and its segments, in one file that changes at once
    stored     a context to read: rows at any multiple of k, text of any row
    reading    the same as a `Context` whose rows are read when k is known
    growth     text -> segments, computed once
    contents   the same text is computed once
    store      the folder: add, append, list, rename, delete
    checking   what is damaged
    mending    what can be made again of the rest, or is to be made anew
    portable   one context in one file; stores merged
    conversation
               turns: the latest raw, those before as rows of one more context

docs/store-format.md publishes the layout.
"""
