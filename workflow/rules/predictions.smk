# Offline extrapolation. In: a run's kept states, the gate's data and teacher. Out: predicted weights
# (results/predictions/<prediction>/seed<s>/<step>/), their evaluation (results/evaluation/<prediction>/), and, for
# methods that ask for it, the states' accuracy on the validation split (results/validation/<run>/).


use rule evaluate as validate_state with:
    input:
        unpack(INPUTS.end),
        student=INPUTS.student,
        prompts=INPUTS.prompts,
    output:
        evaluation=paths.VALIDATION,
    log:
        "logs/validate_state/{run}.seed{seed}.{step}.log",
    params:
        spec=PARAMS.evaluation_spec("validation"),


use rule model_job as predict_weights with:
    input:
        unpack(INPUTS.behind),
        base=INPUTS.student,
        teacher=INPUTS.teacher,
        prompts=INPUTS.prompts,
    output:
        prediction=paths.PREDICTION,
    log:
        "logs/predict_weights/{prediction}.seed{seed}.{step}.log",
    params:
        command="predict-weights",
        spec=PARAMS.spec("predict_weights"),


use rule evaluate as evaluate_prediction with:
    input:
        state=paths.PREDICTION,
        student=INPUTS.student,
        teacher=INPUTS.teacher,
        prompts=INPUTS.prompts,
    output:
        evaluation=paths.PREDICTION_EVALUATION,
    log:
        "logs/evaluate_prediction/{prediction}.seed{seed}.{step}.log",
    wildcard_constraints:
        prediction=one_of(PLAN.predictions),
