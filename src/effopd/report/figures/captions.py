"""What stands under each figure in the report: its title, and how to read it."""

COMPARISON = {
    "accuracy_vs_steps": (
        "Accuracy against optimizer steps",
        "A curve further left learns in fewer steps. A point at a trigger is the model after the gate decided. Dashed: "
        "the base model and the teacher.",
    ),
    "speedups": (
        "How much faster runs reach the baseline's last accuracy",
        "Its cost of reaching it over the run's, geometric means over seeds with intervals over seeds and problems, "
        "gates counted; to the right of 1 the run is faster. Filled: the interval excludes 1. A triangle is an upper "
        "bound: some seeds never reach it. Intervals may leave the figure.",
    ),
    "accuracy_vs_seconds": (
        "Accuracy against computing time",
        "The same points against the seconds spent on rollouts, scores, updates and gates (start-up of jobs left out). "
        "What a gate costs moves a curve to the right.",
    ),
    "ablations": (
        "Accuracy against optimizer steps, group by group",
        "A panel for each group of runs beside the main one. Gray: what they are compared with.",
    ),
    "reverse_kl_vs_steps": (
        "Reverse KL to the teacher against optimizer steps",
        "What on-policy distillation minimizes, measured exactly over the vocabulary on completions of held-out "
        "problems. It is smoother than accuracy, and a gate on it sees progress that 50 graded answers do not.",
    ),
    "gate_vs_coefficient": (
        "What the gate saw",
        "Gate value of the current weights (0) and of each candidate tried, for each run at kept steps. The selected "
        "coefficient is filled, and in a square where it scored exactly as the current weights. For accuracy higher is "
        "better, for the reverse KL lower.",
    ),
}
WEIGHTS = {
    "norms": (
        "How far each layer and module type moved",
        "Frobenius norms of the update at the last step. With Adam every element moves by about the learning rate a "
        "step, so compare shapes, and runs only at equal learning rates.",
    ),
    "accuracy_vs_norm": (
        "Accuracy against the distance to the base",
        "Along the final update, scaled down, and along training. At one distance, a higher curve has spent its "
        "movement better. Points within 1e-4 nats of the teacher are left out.",
    ),
    "sliding_window": (
        "The update inside a window of layers alone",
        "Attention or MLP weights of the layers around the center are the trained ones, all others the base's. "
        "Dotted: the base.",
    ),
    "spectra": (
        "Spectral metrics over training",
        "Means over attention and MLP matrices. Dashed across: the RL teacher at its end. Of small matrices the top "
        "1 % is one direction, and R is ρ.",
    ),
    "reconstruction": (
        "A few singular directions of the update alone",
        "Each matrix's leading directions, rescaled to the norm of the whole; and its last ones, not rescaled.",
    ),
    "alignment": (
        "How early the final directions are there",
        "Cosines of a step's first 20 singular directions with the final ones: paired by index, as in the paper, and "
        "by principal angles, which do not suffer where neighboring directions swap.",
    ),
    "norm_scaling": (
        "An early update, scaled towards the final norm",
        "Each parameter's early update times 1 + β (ratio − 1), where ratio is the norm of the final update over its "
        "own. A plateau from below 1 on says that early directions were right and only short.",
    ),
    "trajectory": (
        "The path of one matrix's leading direction",
        "On the two principal axes of its own path; larger points are later. EVR is the share of the variance along "
        "them, a mean over matrices; of three or fewer steps it is 1 by itself.",
    ),
    "trajectory_map": (
        "The same directions as a t-SNE map",
        "Only which steps are neighbors means anything: neither distances nor the shape do.",
    ),
    "embeddings": (
        "How far representations moved, and what the base's embeddings cost",
        "Left: the cosine of hidden states to the base's, on text that the base generated. Right: the difference in "
        "accuracy when the base's token embeddings are put back.",
    ),
    "sparsity": (
        "How many elements hardly moved",
        "The share of elements that moved by no more than a tolerance, in float32, at the last step.",
    ),
    "local_theory": (
        "The local theory against what happened",
        "(a) Singular values of the residual to the teacher's logits. (b) How much of the gradient b, and of a random "
        "vector, lies in the leading eigenvectors of A. (c) The cosine of the observed update to gradient descent's on "
        "the local quadratic, at equal length. (d) The reverse KL on the same contexts at the observed weights and, "
        "dotted, at the predicted ones. Training uses AdamW and moves on to new contexts, so (c) and (d) test the "
        "theory as a description, not as arithmetic.",
    ),
}
WITHOUT_BANDS = ("speedups", "gate_vs_coefficient", "trajectory", "trajectory_map")
