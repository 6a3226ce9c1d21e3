"""AdaptationRequest: what a request asks of its adaptation, and its parser.

A `file_search` among the tools of a response counts, too. Only what concerns adaptation is checked
here; everything else in the body is vLLM's to check, and `serving.http.unsupported` refuses what
has no effect.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

from adapters.step_plan import PLANS
from adapters.training import Probe, TrainingRequest
from selection.access import Principal
from selection.corpus.calibration import Calibration
from selection.corpus.filters import Filter
from selection.embedding import Prompt
from selection.examples.example import Example
from selection.request import Candidate, SelectionRequest
from selection.selector import Selection
from selection.targets import Truncation
from serving.adaptation.admission import TrainerLoad
from serving.adaptation.file_search import take_file_search
from serving.adaptation.prompts import SHOWN, parse_prompts, probe_tokens
from serving.adaptation.request_examples import (
    check_misplaced,
    parse_examples,
    parse_examples_as,
    parse_filters,
    parse_reuse,
    parse_strategy,
    parse_texts,
)
from serving.adaptation.shown import parse_show
from serving.adaptation.starts import Start, StartingPoint, parse_start
from serving.budget import ALIAS, FIELD, HEADER, Budget, ExamplesAs, Reuse, Terms, agreed_budget
from serving.errors import RequestError

# Steps of a budget with a gain where the prompt's loss cannot end the training: a few for each
# example, as measured with ten (benchmarks/README.md).
STEPS_PER_CANDIDATE = 3
_OPTIONS = {
    "corpus",
    "examples",
    "examples_as",
    "filters",
    "plan",
    "progress",
    "prompt",
    "required",
    "reuse",
    "seed",
    "show",
    "start",
    "strategy",
    "texts",
}


@dataclass(frozen=True)
class AdaptationRequest:
    """What a request asks of its adaptation.

    Attributes:
        prompts: prompts to adapt to.
        budget: budget within the server's limits.
        clamped: names of the limits that the request exceeded.
        corpus: corpus to choose from; None for the base model.
        corpus_explicit: whether the request named the corpus, rather than the server.
        filter: filter on the documents' metadata.
        strategy: selection strategy; None for that of a calibrated corpus, or SIFT.
        plan: training plan.
        seed: seed of the adapter and of the strategy "random".
        start: whether training starts from the corpus's adapter or from a fresh one; None for the
            former where it lowers the prompt's loss.
        required: whether to fail rather than answer with the base model; then the steps are not
            reduced while the server is busy.
        progress: whether comments in the stream report the progress.
        examples, texts: what the request itself brings to learn from.
        examples_as: whether each example is a training sequence by itself, or after the others.
        show: maximum number of sequences to put into the prompt; None for what `auto`, or a
            calibrated corpus, decides.
        shows_chosen: whether these are chosen, rather than all examples of the request in their
            order.
        reuse: whether to go on from the adapter of the conversation's previous turn, or to use the
            adapter of the same examples again; None for a fresh adapter.
        candidates: the examples and texts as training sequences, once they are rendered
            (`serving.adaptation.candidates`).
        shed: what a busy server took off the budget, in words; None for nothing.
        probe_tokens: end of the longest prompt in the model's tokens, whose loss shows whether
            adapting helps; empty for a request that does not adapt, or where it does not show it.
        truncation: how many of the request's prompts `prompts` are; None for all of them.
    """

    prompts: tuple[Prompt, ...]
    budget: Budget
    clamped: tuple[str, ...]
    corpus: str | None
    corpus_explicit: bool = True
    filter: Filter | None = None
    strategy: str | None = None
    plan: str = "sequential"
    seed: int = 0
    start: Start | None = None
    required: bool = False
    progress: bool = False
    examples: tuple[Example, ...] = ()
    texts: tuple[str, ...] = ()
    examples_as: ExamplesAs = "single"
    show: int | None = 0
    shows_chosen: bool = True
    reuse: Reuse | None = None
    candidates: tuple[Candidate, ...] = ()
    shed: str | None = None
    probe_tokens: tuple[int, ...] = ()
    truncation: Truncation | None = None

    @property
    def adapts(self) -> bool:
        """Whether there is a step to take and something to choose from."""
        return self.budget.steps > 0 and (self.corpus is not None or self.brings_data)

    @property
    def needs_adapter(self) -> bool:
        """Whether the budget has an adapter answer."""
        return self.budget.steps > 0 or self.budget.instant

    @property
    def seeks_start(self) -> bool:
        """Whether the adapter of the corpus is looked up."""
        return self.needs_adapter and self.corpus is not None and self.start != "fresh"

    @property
    def judges_prompt(self) -> bool:
        """Whether the prompt's own loss shows whether training helps. Examples teach answers, whose
        loss says more about the answer than the prompt's; and an adapter that other requests use
        again is not made for this prompt.
        """
        return not self.examples and self.reuse != "examples"

    @property
    def brings_data(self) -> bool:
        """Whether the request itself brings something to learn from."""
        return bool(self.examples or self.texts)

    def shed_load(self, load: TrainerLoad) -> AdaptationRequest:
        """This request with the steps that a server under this load gives it."""
        asked = self.budget.steps
        steps = asked if self.required else load.steps(asked)
        if steps == asked:
            return self
        reason = f"{load.pending} adaptations are under way, {load.undegraded} get all"
        shed = f"{steps} of {asked} steps: {reason}"
        return replace(self, budget=replace(self.budget, steps=steps), shed=shed)

    def with_candidates(self, candidates: tuple[Candidate, ...]) -> AdaptationRequest:
        """This request with its examples and texts as candidates.

        An adapter is trained for the examples rather than for the prompt where there is nothing
        else, or where it may be used again: SIFT then chooses them in turn, rather than the one
        that resembles the prompt.
        """
        budget, prompts = self.budget, self.prompts
        if budget.gain is not None and not self.judges_prompt:
            steps = budget.steps
            if self.corpus is None:
                steps = min(steps, STEPS_PER_CANDIDATE * len(candidates))
            budget = replace(budget, steps=steps, gain=None)
        alone = self.examples and self.corpus is None and budget.steps > 0
        if alone or self.reuse == "examples":
            prompts = tuple(candidate.prompt for candidate in candidates)
        return replace(self, candidates=candidates, budget=budget, prompts=prompts)

    def needs_candidates(self, is_trained: bool) -> bool:
        """Whether its examples and texts are to be rendered, although it may have its adapter."""
        return self.brings_data and not (is_trained and not (self.show and self.shows_chosen))

    def examples_digest(self, is_chat: bool) -> bytes:
        """Equal for requests that make the same adapter from the same corpus; their examples are
        rendered by the chat template if `is_chat`.
        """
        brought = [each.to_json() for each in self.examples], self.texts, self.examples_as, is_chat
        budget = self.budget.as_dict(), self.budget.prefers_corpus
        fields = [brought, budget, self.strategy, self.plan, self.seed]
        return hashlib.sha256(json.dumps(fields).encode()).digest()

    def selection(self, corpus: str | None, principal: Principal) -> SelectionRequest:
        """The data to choose: from the corpus, if one is named, and from the candidates."""
        shown = SHOWN if self.show is None else self.show
        return SelectionRequest(
            self.prompts,
            corpus,
            steps=max(self.budget.steps, shown if self.shows_chosen else 0),
            alpha=self.budget.alpha,
            strategy=self.strategy,
            filter=self.filter,
            seed=self.seed,
            principal=principal,
            candidates=self.candidates,
            start=self.seeks_start and corpus is not None,
            shows_calibrated=self.show is None,
        )

    def training(
        self,
        selection: Selection,
        seconds: float | None,
        start: StartingPoint,
        earlier: bytes | None = None,
    ) -> TrainingRequest:
        """The training on what was chosen, within `seconds`, from the weights of an earlier adapter
        that had this start, or from the start itself.
        """
        calibration = selection.calibration
        budget = self.budget_for(calibration)
        first = start.adapter if earlier is None else None
        return TrainingRequest(
            selection.sequences[: budget.steps],
            seed=self.seed,
            seconds=seconds,
            plan=self.plan,
            start=first.weights if first else earlier,
            start_if_better=first is not None and self.start != "corpus" and self.has_probe,
            learning_rate=None if calibration is None else calibration.learning_rate,
            learning_rate_factor=None if start.adapter else 1.0,
            probe=Probe(self.probe_tokens, budget.gain) if self.has_probe else None,
            scored=selection.scored[: budget.steps],
        )

    def budget_for(self, calibration: Calibration | None) -> Budget:
        """The budget, with the gain and the steps of a calibrated corpus where it allows that; its
        gain is None where there is no text to measure it on.
        """
        budget = self.budget
        if calibration is not None:
            budget = budget.for_corpus(calibration.gain, calibration.steps)
        return budget if self.has_probe else replace(budget, gain=None)

    @property
    def has_probe(self) -> bool:
        """Whether the loss of the prompt can be measured: that of a first token is not defined."""
        return len(self.probe_tokens) > 1


def parse_adaptation_request(
    body: dict[str, Any],
    header: str | None,
    alias: str | None,
    terms: Terms,
    tokenizer: Any,
    *,
    default: Budget | None = None,
    key_limits: Budget | None = None,
) -> AdaptationRequest:
    """Parse the budget and the `adaptation` extension, and take both out of the body.

    Args:
        body: body of the request, JSON.
        header, alias: Compute-Budget and X-Compute-Budget.
        terms: the server's terms.
        tokenizer: the model's, for prompts of token ids.
        default: budget of a request without one, where the API key has its own.
        key_limits: limits of the API key, within the server's.

    Raises:
        BudgetError: an invalid header or `compute_budget`.
        RequestError: an invalid extension or `file_search`.
    """
    if "input" in body and "messages" not in body:  # the Responses API
        take_file_search(body)
    limits = terms.limits_with(key_limits)
    sources = {HEADER: header, ALIAS: alias, FIELD: body.pop(FIELD, None)}
    budget = agreed_budget(sources, terms.auto if default is None else default, terms.auto, limits)
    budget, clamped = budget.clamp(limits)
    options = body.pop("adaptation", None)
    options = {} if options is None else options
    if not isinstance(options, dict):
        raise RequestError('`adaptation` is an object such as {"corpus": "name", "seed": 0}')
    if unknown := set(options) - _OPTIONS:
        raise RequestError(
            f"`adaptation` has no {', '.join(sorted(unknown))}; "
            f"it takes {', '.join(sorted(_OPTIONS))}"
        )
    check_misplaced(body)
    examples, texts = parse_examples(options, terms.examples), parse_texts(options, terms.examples)
    # What a request brings is not mixed with a corpus that it does not name.
    corpus = options.get("corpus", None if examples or texts else terms.corpus)
    if corpus is not None and not isinstance(corpus, str):
        raise RequestError("`adaptation.corpus` is the name of a corpus")
    has_alpha = any("alpha" in each for each in sources.values() if each is not None)
    strategy = parse_strategy(options, has_alpha=has_alpha)
    if strategy not in (None, "sift"):  # it alone has a stopping rule
        budget = replace(budget, alpha=None)
    plan = options.get("plan", "sequential")
    if plan == "last-layer":
        raise RequestError(
            "`adaptation.plan` last-layer: "
            "the engine cannot load an adapter of the last linear layer"
        )
    if not isinstance(plan, str) or plan not in PLANS:
        raise RequestError(f"`adaptation.plan` is one of {', '.join(PLANS)}")
    seed = options.get("seed", 0)
    if type(seed) is not int or not 0 <= seed < 1 << 63:
        raise RequestError("`adaptation.seed` is a whole number, 0 or more")
    examples_as = parse_examples_as(options, examples)
    # A prompt without examples is not what leave-one-out prepares for.
    shows_chosen = examples_as == "single" or options.get("show") is not None
    prompts, truncation = parse_prompts(body, options.get("prompt"), tokenizer)
    show = parse_show(options.get("show"), body, terms.show if shows_chosen else len(examples))
    if show is None and (corpus is None or budget.steps == 0):
        # A budget without steps asks for the base model, not for retrieval.
        show = 0
    if corpus is None and not texts and 0 < len(examples) <= (show or 0):
        shows_chosen = False  # there is nothing to choose
    request = AdaptationRequest(
        prompts=prompts,
        budget=budget,
        clamped=clamped,
        corpus=corpus,
        corpus_explicit="corpus" in options,
        filter=parse_filters(options, corpus),
        strategy=strategy,
        plan=plan,
        seed=seed,
        start=parse_start(options, budget),
        required=_flag(options, "required"),
        progress=_flag(options, "progress"),
        examples=examples,
        texts=texts,
        examples_as=examples_as,
        show=show,
        shows_chosen=shows_chosen,
        reuse=parse_reuse(options, has_candidates=bool(examples or texts)),
        truncation=truncation,
    )
    if request.adapts and request.judges_prompt:
        return replace(request, probe_tokens=probe_tokens(prompts, tokenizer))
    return request


def _flag(options: dict[str, Any], name: str) -> bool:
    value = options.get(name, False)
    if type(value) is not bool:
        raise RequestError(f"`adaptation.{name}` is true or false")
    return value
