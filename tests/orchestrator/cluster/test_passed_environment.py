from orchestrator.cluster.passed_environment import split_environment


def test_where_models_and_trackers_are_reaches_actors_and_secrets_are_kept_apart():
    environment = {
        **{"HF_HOME": "/data/hub", "HF_TOKEN": "hf_abcdef", "HUGGING_FACE_HUB_TOKEN": "hf_ghi", "PATH": "/bin"},
        **{"MLFLOW_TRACKING_URI": "http://me:pw@host", "MLFLOW_EXPERIMENT_NAME": "x", "MLFLOW_TRACKING_PASSWORD": "pw"},
        **{
            "https_proxy": "http://proxy:3128",
            "NO_PROXY": "10.0.0.0/8",
            "HTTP_PROXY": "http://u:p@proxy",
            "AWS_SECRET": "s",
        },
    }
    seen, secret = split_environment(environment)
    assert seen.keys() == {"HF_HOME", "MLFLOW_EXPERIMENT_NAME", "https_proxy", "NO_PROXY"}
    assert secret.keys() == {
        *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_PASSWORD", "HTTP_PROXY"),
    }
    assert secret["HF_TOKEN"] == "hf_abcdef"


def test_no_log_shows_a_secret():
    _, secret = split_environment({"HF_TOKEN": "hf_abcdef"})
    assert "hf_abcdef" not in f"{secret} {secret!r} {[secret]}"
    assert "HF_TOKEN" in repr(secret)
