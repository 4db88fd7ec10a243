"""A made-up results dict of a study of one model for many tasks, with other pretraining."""

from . import helpers_results

TASKS = {"film_reviews": "text", "digits": "image", "topics": "text"}


def variant(task, difference, num_labels=30, **changes):
    measured = {"difference": difference, "low": None, "high": None, "p": None}
    if difference is not None:
        measured |= {"low": difference - 0.03, "high": difference + 0.03, "p": 0.01}
    place = {"task": task, "modality": TASKS[task], "num_labels": num_labels, "metric": "accuracy"}
    return place | measured | {"value": 0.5, "values": [0.4, 0.6]} | changes


def multitask_results():
    shares = {"text": 0.8, "image": 0.2}
    return {
        "schema": 2,
        "experiment": "multitask",
        "arms": [helpers_results.arm(name) for name in ("scratch", "in_domain", "joint")],
        "claims": [{"arm": "joint", "baseline": "scratch", "text": "joint against scratch"}],
        "tasks": [{"name": name, "modality": each} for name, each in TASKS.items()],
        "ablations": [
            {
                "name": "transfer_matrix",
                "title": "One modality",
                "baseline": "fresh",
                "figure": {"kind": "grid", "field": "source"},
            },
            {
                "name": "mixture",
                "title": "Another mixture",
                "figure": {"kind": "grid", "field": "factor"},
            },
            {
                "name": "data_amount",
                "title": "Less data",
                "figure": {"kind": "curve", "field": "share"},
            },
        ],
        "transfer_matrix": [
            variant(task, gain, source=source)
            for task in TASKS
            for source, gain in (("nothing", None), ("text", 0.1), ("image", -0.2), ("all", 0.0))
        ],
        "mixture": [
            variant(
                task,
                None if name is None else 0.02,
                changed_modality=name,
                factor=by,
                shares=shares,
            )
            for task in TASKS
            for name, by in ((None, 1.0), ("text", 0.25), ("text", 4.0), ("image", 4.0))
        ],
        "data_amount": [variant(task, 0.1, share=n) for task in TASKS for n in (0, 0.25, 1.0)],
        "amortized_cost": [
            {
                "arm": arm,
                "num_labels": num_labels,
                "num_tasks": count,
                "flops": cost * count * num_labels,
                "seconds": 1.0 * count,
                "parameters": None,
            }
            for arm, cost in (("scratch", 1e9), ("joint", 2e9))
            for num_labels in (30, 100)
            for count in (1, 2, 3)
        ],
        "break_even": [
            {
                "arm": "joint",
                "baseline": "scratch",
                "tasks": ["digits", "topics"],
                "flops": 37,
                "seconds": None,
                "seconds_until": 2,
                "never": [{"task": "film_reviews", "arm": "scratch"}],
            },
            {"arm": "in_domain", "baseline": "scratch", "tasks": [], "never": []},
        ],
    }
