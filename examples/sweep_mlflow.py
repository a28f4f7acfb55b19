"""A sweep over the KL weight and the budgets, and what MLflow says of it afterwards."""

import mlflow

import terse


def main() -> None:
    sweep = terse.sweep(
        "quickstart",
        {
            "run.name": "sweep_mlflow",
            "rl.kl_beta": [1e-2, 1e-4],
            "budget.buckets_tokens": [[20, 32], [60]],
            "sft.num_steps": 60,
            "rl.num_steps": 8,
            "evaluation.num_tasks": 64,
            "evaluation.caps_tokens": [],
            "heads.num_tasks": 0,
            "scaling.num_tasks": 0,
        },
    )
    print(f"report: {sweep.report}")
    mlflow.set_tracking_uri("sqlite:///runs/mlflow.db")
    trials = mlflow.search_runs(
        search_all_experiments=True,
        filter_string="metrics.`eval/accuracy` >= 0",
        order_by=["metrics.`eval/mean_tokens` ASC"],
    )
    for _, trial in trials.iterrows():
        print(
            f"beta {float(trial['params.rl.kl_beta']):g}, budgets {trial['params.budget.buckets_tokens']}: "
            f"{trial['metrics.eval/accuracy']:.0%} right, {trial['metrics.eval/mean_tokens']:.0f} tokens, "
            f"{trial['metrics.eval/length_reduction']:.2f} times shorter"
        )


if __name__ == "__main__":
    main()
