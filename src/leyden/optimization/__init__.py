"""The optimization process: plan, window, update, verdict, clocks.

Read in this order: ``plan`` (what ``configure_optimizers`` means), ``automatic`` (the way of one batch), ``window``
(accumulation), ``update`` (gradients ready, hooks, clip, verdict, step), ``manual`` (the same parts, driven by the
user), ``schedulers`` and ``clocks``.
"""
