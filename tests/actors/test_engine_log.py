from actors.engine_log import find_cause

LOG = """\
(EngineCore pid=7) WARNING 11-21 22:23:19 [vllm.py:1703] Enforce eager set
(Worker pid=8) ERROR 11-21 22:23:20 [multiproc_executor.py:1063] ValueError: of a worker
(EngineCore pid=7) ERROR 11-21 22:23:20 [core.py:1512] Traceback (most recent call last):
(EngineCore pid=7) ERROR 11-21 22:23:20 [core.py:1512]   File "executor.py", line 444, in get_response
(EngineCore pid=7) ERROR 11-21 22:23:20 [core.py:1512]     raise RuntimeError(
(EngineCore pid=7) ERROR 11-21 22:23:20 [core.py:1512] RuntimeError: Worker failed with error 'backend='inductor' raised:
(EngineCore pid=7) ERROR 11-21 22:23:20 [core.py:1512] InvalidCxxCompiler: No working C++ compiler found in (None, 'g++')
(EngineCore pid=7) ERROR 11-21 22:23:20 [core.py:1512]
(EngineCore pid=7) ERROR 11-21 22:23:20 [core.py:1512] Set TORCHDYNAMO_VERBOSE=1 for the internal stack trace
(MainProcess pid=6) ERROR 11-21 22:23:20 [async_llm.py:906] vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.
"""


def test_the_cause_is_the_last_exception_of_vllms_own_processes():
    assert find_cause(LOG) == "InvalidCxxCompiler: No working C++ compiler found in (None, 'g++')"


def test_a_log_without_exceptions_has_no_cause():
    assert find_cause("") == ""
    assert find_cause(LOG.splitlines()[0]) == ""


def test_an_exception_that_only_refers_to_another_is_not_the_cause():
    refers = "(EngineCore pid=7) ERROR 11-21 22:23:21 [core.py:9] Exception: WorkerProc initialization failed due to an exception in a background process. See stack trace for root cause.\n"
    assert find_cause(LOG + refers) == find_cause(LOG)
    assert find_cause(refers).startswith("Exception: WorkerProc initialization failed")
