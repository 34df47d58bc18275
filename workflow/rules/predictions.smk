# Offline extrapolation. In: a run's kept states, the gate's data and teacher. Out: predicted weights
# (results/predictions/<prediction>/seed<s>/<step>/), their evaluation (results/evaluation/<prediction>/), and, for
# methods that ask for it, the states' accuracy on the validation split (results/validation/<run>/).


rule validate_state:
    input:
        unpack(end_of),
        student=model_of("student"),
        prompts=prompts_of,
    output:
        evaluation=VALIDATION,
    log:
        "logs/validate_state/{run}.seed{seed}.{step}.log",
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=validation_spec,
        launch=launch(),
        ledger=optional("--ledger", "ledger"),
    shell:
        "{params.launch} evaluate --student {input.student} --prompts {input.prompts} --state {input.state}"
        " {params.ledger} --spec {params.spec:q} --out {output.evaluation} 2> {log}"


rule predict_weights:
    input:
        unpack(behind),
        base=model_behind("student"),
        teacher=model_behind("teacher"),
        prompts=prompts_behind,
    output:
        prediction=PREDICTION,
    log:
        "logs/predict_weights/{prediction}.seed{seed}.{step}.log",
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=spec("predict_weights"),
        launch=launch(),
        states=repeated("--states", "states"),
        ledgers=repeated("--ledgers", "ledgers"),
        validations=repeated("--validations", "validations"),
    shell:
        "{params.launch} predict-weights --base {input.base} --teacher {input.teacher} --prompts {input.prompts}"
        " {params.states} {params.ledgers} {params.validations} --spec {params.spec:q} --out {output.prediction} 2> {log}"


rule evaluate_prediction:
    input:
        prediction=PREDICTION,
        student=model_behind("student"),
        teacher=model_behind("teacher"),
        prompts=prompts_behind,
    output:
        evaluation="results/evaluation/{prediction}/seed{seed}/{step}.json",
    log:
        "logs/evaluate_prediction/{prediction}.seed{seed}.{step}.log",
    wildcard_constraints:
        prediction="|".join(PLAN.predictions) or "(?!)",
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=prediction_evaluation_spec,
        launch=launch(),
    shell:
        "{params.launch} evaluate --student {input.student} --teacher {input.teacher} --prompts {input.prompts}"
        " --state {input.prediction} --spec {params.spec:q} --out {output.evaluation} 2> {log}"
