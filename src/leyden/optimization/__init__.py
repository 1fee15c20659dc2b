"""The optimization process: plan, window, update, verdict, clocks.

Read in this order:

    plan        what configure_optimizers means            joint       several optimizers, one update
    automatic   the way of one batch                       optimizer   the handle that users hold
    window      accumulation, and its exact weights        contract    what an optimizer can do
    update      gradients ready, hooks, clip, verdict      turns       one optimizer in a run; who is active when
    manual      the same parts, driven by the user         toggling    whose parameters require gradients now
    schedulers  when each scheduler steps                  gradients   corrected, measured, clipped
    clocks      the counters, and the verdicts             bare        torch's calls without their wrappers
"""
