"""Evaluations: what a reader gains from rows, against no context and against raw context.

    lm      language modelling: loss, perplexity and recovery per domain

Each evaluation draws its targets by a seed, the same for every method, keeps the loss of every
target, and scores afterwards, so that scoring can be rerun. Imports the core, never the reverse.
"""
