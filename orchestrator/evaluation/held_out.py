"""Held-out accuracy and length of a policy while it is being trained."""

import logging
from typing import Any

from actors.types import AdapterRef
from orchestrator.cluster.dispatcher import Dispatcher, Finished
from orchestrator.data.prompts import held_out_prompts
from orchestrator.evaluation.evaluate import make_record, make_requests
from orchestrator.record import best
from orchestrator.record.evaluations import EvaluationRecord
from orchestrator.record.metrics import evaluation_metrics, summarise
from orchestrator.stage import Stage

log = logging.getLogger(__name__)


class HeldOut:
    """Evaluations between steps, one at a time, to MLflow at the step whose adapter was evaluated.

    On engines of their own (`evaluation.num_actors`) they go on beside the next steps, with an adapter that stays what
    it was; on the rollout engines the next step waits, and groups in flight go on. As a context manager it waits for
    what is still going on, except after an error.
    """

    def __init__(self, stage: Stage):
        self._stage = stage
        self._running: tuple[int, Dispatcher, Any] | None = None
        self._finished: list[Finished] = []

    def __enter__(self) -> "HeldOut":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None:
        if error is None or issubclass(error, KeyboardInterrupt):
            self.finish()

    def begin(self, ref: AdapterRef, packed: Any) -> None:
        """Evaluate this adapter, once the evaluation before it is done."""
        self.finish()
        cluster, config = self._stage.cluster, self._stage.config
        has_own_engines = cluster.evaluators is not cluster.engines
        if has_own_engines:
            cluster.evaluators.load_adapter(ref, packed)
        dispatcher = cluster.make_evaluation_dispatcher()
        prompts = held_out_prompts(config, self._stage.tokenizer)
        for request in make_requests(prompts, config.evaluation, ref.version):
            dispatcher.submit(request)
        self._running = ref.version, dispatcher, packed
        if not has_own_engines:
            self.finish()

    def advance(self) -> None:
        """Take what has come in, without waiting."""
        if self._running is not None:
            self._finished += self._running[1].poll()
            self._report_when_finished()

    def finish(self) -> None:
        while self._running is not None:
            self._finished += self._running[1].wait()
            self._report_when_finished()

    def _report_when_finished(self) -> None:
        assert self._running is not None
        version, dispatcher, packed = self._running
        if dispatcher.num_in_flight:
            return
        finished, self._finished, self._running = self._finished, [], None
        records = [make_record(one) for one in sorted(finished, key=lambda one: one.request.request_id)]
        self._stage.tracker.log_metrics(evaluation_metrics("eval/rl", records), version)
        summary = summarise(records)
        self._consider(version, records, packed)
        log.info("held out, step %d: accuracy %.3f, %.1f tokens", version, summary.accuracy, summary.mean_tokens)

    def _consider(self, version: int, records: list[EvaluationRecord], packed: Any) -> None:
        """Keep the adapter where it is the best so far."""
        rl = self._stage.config.rl
        if rl.keep_best == "none":
            return
        seen = best.look_at(version, records, rl.best_cap_tokens)
        if best.consider(self._stage.directory, rl.keep_best, seen, self._stage.cluster.fetch(packed)):
            log.info("step %d is the best so far: %s", version, best.directory_of(self._stage.directory, version))
