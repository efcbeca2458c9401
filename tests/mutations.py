"""Deliberate faults, one at a time, each of which the test of its property must catch.

    make mutations                              all of them, about five minutes on two idle cores
    python tests/mutations.py 7 mixture         those whose property, file or fault has one of the words in it

The sources are copied into a temporary folder, a fault is put in, and the tests that should see it are run there. A
fault that no test sees is printed as MISSED, and the exit status is 1. `tests/test_mutations.py` holds that each
fault still applies to the sources as they are.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
LAYERS, MOD, LATENT, MEMORY = (
    f"lahr/model/{n}.py" for n in ("layers", "mixture_of_depths", "latent_reasoning", "memory")
)
LAHR, CACHE, FLOPS, GENERATION = (f"lahr/model/{n}.py" for n in ("lahr", "cache", "flops", "generation"))
LOOP, EVALUATION, BATCHES = "lahr/training/loop.py", "lahr/training/evaluation.py", "lahr/data/batches.py"
HEAD, COMPILATION, PROFILING = "lahr/model/head.py", "lahr/training/compilation.py", "lahr/training/profiling.py"
IN_MODEL = "tests/lahr/model"
EFFECTS, CONTRASTS, SEQUENTIAL = (f"sweeps/analysis/{n}.py" for n in ("effects", "contrasts", "sequential"))
ANALYSIS = "tests/sweeps/analysis"


class Fault(NamedTuple):
    """One deliberate bug."""

    property: str
    """Number in the list of properties (docs/how-it-works.md), or the option or the part of the analysis."""
    what: str
    file: str
    old: str
    """Occurs once in the file."""
    new: str
    tests: str
    """Words of pytest's command line: where it has to be caught."""


FAULTS = [
    Fault("1", "the causal mask one place late", LAYERS,
          ".triu_(start + 1)", ".triu_(start + 2)", f"{IN_MODEL}/test_causality.py"),
    Fault("1", "causal routing that looks at the top k", MOD,
          "            selected_BT = causal_BT > self.threshold\n", "            selected_BT = top_k_BT\n",
          f"{IN_MODEL}/test_causality.py"),
    Fault("1", "top-k routing that is causal, so that its test could not fail", MOD,
          'if routing == "topk":', "if False:", f"{IN_MODEL}/test_causality.py"),
    Fault("1", "chosen tokens packed out of order", MOD,
          "torch.argsort(~selected_BT, dim=1, stable=True)[:, :width]",
          "torch.argsort(~selected_BT, dim=1, stable=True)[:, :width].flip(1)", f"{IN_MODEL}/test_causality.py"),
    Fault("2", "the gate left out", MOD,
          'r_BK.sigmoid() if self.gate == "sigmoid" else r_BK) * real_BK', "torch.ones_like(r_BK)) * real_BK",
          f"{IN_MODEL}/test_mixture_of_depths.py"),
    Fault("2", "the block's output scaled instead of its branch", MOD,
          "super().forward(x_BKD, window.at(routed.places_BK, routed.real_BK)) - x_BKD",
          "super().forward(x_BKD, window.at(routed.places_BK, routed.real_BK))",
          f"{IN_MODEL}/test_mixture_of_depths.py"),
    Fault("2", "positions counted among the chosen tokens", LAYERS,
          "return Window(self.rotary.at(places_BK), real_BK)",
          "return Window(self.rotary.at(torch.arange(places_BK.shape[1]).expand_as(places_BK)), real_BK)",
          f"{IN_MODEL}/test_mixture_of_depths.py"),
    Fault("3", "a routed block in every cell, as in the published code", LAHR,
          "            if i in c.routed_layers\n", "            if i % 2\n", f"{IN_MODEL}/test_cells.py"),
    Fault("3", "a formula that leaves the core's outer norms out", FLOPS,
          "c.latent_core_layers * (block + 2 * d)", "c.latent_core_layers * block", f"{IN_MODEL}/test_cells.py"),
    Fault("4", "a readout that does not start at zero", LATENT,
          "self.readout = Linear(d_model, d_model, scale=0.0)", "self.readout = Linear(d_model, d_model)",
          f"{IN_MODEL}/test_cells.py"),
    Fault("4", "a memory that does not start at zero", MEMORY,
          "self.out = Linear(d_model, d_model, scale=0.0)", "self.out = Linear(d_model, d_model)",
          f"{IN_MODEL}/test_cells.py"),
    Fault("4", "the kNN memory's gate as a sigmoid, which starts at a half", MEMORY,
          "self.memory.gate.tanh().to", "self.memory.gate.sigmoid().to", f"{IN_MODEL}/test_cells.py"),
    Fault("5", "a router without a gradient, as in the published code", MOD,
          "r_BK = scores_BT.gather(1, places_BK)", "r_BK = scores_BT.detach().gather(1, places_BK)",
          f"{IN_MODEL}/test_cells.py"),
    Fault("5", "a predictor that moves what it reads", MOD,
          "self.predictor(x_BTD.detach())", "self.predictor(x_BTD)", f"{IN_MODEL}/test_cells.py"),
    Fault("5", "a memory that reads without its temperature", MEMORY,
          "(scores * torch.exp(-self.log_temperature)[:, None]).softmax(-1)", "scores.softmax(-1)",
          f"{IN_MODEL}/test_cells.py"),
    Fault("6", "a state that does not depend on the input", LATENT,
          "injected_BTD = self.injection * self.input_norm(e_BTD)",
          "injected_BTD = self.injection * torch.ones_like(e_BTD); e_BTD = torch.ones_like(e_BTD)",
          f"{IN_MODEL}/test_latent_reasoning.py"),
    Fault("6", "one pass too many", LATENT,
          "            h_BTD, states = e_BTD, []\n            for t in range(1, passes + 1):",
          "            h_BTD, states = e_BTD, []\n            for t in range(0, passes + 1):",
          f"{IN_MODEL}/test_latent_reasoning.py"),
    Fault("6", "a whole batch that halts at once, as in the published code", LATENT,
          "            leaves_BT = inside_BT & (", "            now_BT = now_BT.mean().expand_as(now_BT)\n"
          "            leaves_BT = inside_BT & (", f"{IN_MODEL}/test_latent_reasoning.py"),
    Fault("6", "keys of tokens that left are forgotten", LATENT,
          "        self.latest[self.layer] = (k_BTHE, v_BTHE)\n",
          "        self.latest.setdefault(self.layer, (k_BTHE, v_BTHE))\n", f"{IN_MODEL}/test_latent_reasoning.py"),
    Fault("7", "tokens that are not routed are cached", CACHE,
          "chosen.append(self.positions_BT, self.real_BT)",
          "chosen.append(self.positions_BT, torch.ones_like(self.real_BT))", f"{IN_MODEL}/test_generation.py"),
    Fault("7", "one cache for all passes", LATENT,
          'self.step(h_BTD, injected_BTD, window.site(f"pass{t}"))', 'self.step(h_BTD, injected_BTD, window)',
          f"{IN_MODEL}/test_generation.py"),
    Fault("7", "deeper passes do not find the keys of tokens that left", LATENT,
          "                    here.site(layer).keep(*keys)\n", "                    pass\n",
          f"{IN_MODEL}/test_generation.py"),
    Fault("7", "positions counted from the padding's start", CACHE,
          "(before_B[:, None] + real_BT.cumsum(1) - 1)",
          "(before_B[:, None] + torch.ones_like(real_BT).cumsum(1) - 1)", f"{IN_MODEL}/test_generation.py"),
    Fault("8", "top-k over the whole batch", MOD,
          "return scores_BT.topk(k, dim=1).indices.sort(dim=1).values",
          "return scores_BT.mean(0, keepdim=True).topk(k).indices.sort(dim=1).values.expand(len(scores_BT), -1)",
          f"{IN_MODEL}/test_causality.py"),
    Fault("8", "queries normalised over the batch", MEMORY,
          "q_BTHK = self.query_norm(self.query(x_BTD).view(B, T, self.heads, -1))",
          "q_BTHK = self.query(x_BTD).view(B, T, self.heads, -1); q_BTHK = q_BTHK / q_BTHK.std((0, 1))",
          f"{IN_MODEL}/test_causality.py"),
    Fault("9", "a last smaller batch that weighs as much as a whole one", EVALUATION,
          "value.double() * weight", "value.double() * micro_batch", "tests/lahr/training/test_loop.py -k constant"),
    Fault("9", "perplexity's loss capped, as in the published code", EVALUATION,
          'sums.add("losses", _pair(output.losses_BT, targets_BT >= 0)',
          'sums.add("losses", _pair(output.losses_BT.clamp(max=10.0), targets_BT >= 0)',
          "tests/lahr/training/test_loop.py -k large"),
    Fault("10", "draws that follow from no step", LOOP,
          "torch.manual_seed(random_seed(self.config, self.step, self.rank))", "pass",
          "tests/lahr/training/test_loop.py -k resumed"),
    Fault("10", "the position one step off", LOOP,
          "        self.step = checkpoint.step\n", "        self.step = checkpoint.step - 1\n",
          "tests/lahr/training/test_loop.py -k resumed"),
    Fault("11", "thresholds from a rank's own half", LOOP,
          "self.model.observe(self._from_all_ranks(torch.cat(causal_scores, dim=1)), falling)",
          "self.model.observe(torch.cat(causal_scores, dim=1), falling)", "tests/lahr/training/test_two_ranks.py"),
    Fault("12", "half as many candidates of each half", MEMORY,
          "best, which = scores.to(self.keys.dtype).topk(k, dim=-1)",
          "best, which = (x[..., : -(-k // 2)].repeat_interleave(2, -1)[..., :k] for x in "
          "scores.to(self.keys.dtype).topk(k, dim=-1))", f"{IN_MODEL}/test_memory.py"),
    Fault("12", "the halves of a slot's number exchanged", MEMORY,
          "which[:, 0, :, :, None] * self.n + which[:, 1, :, None, :]",
          "which[:, 0, :, :, None] + which[:, 1, :, None, :] * self.n", f"{IN_MODEL}/test_memory.py"),
    Fault("13", "data order that depends on the cell", LOOP,
          "            config.drawn_seed,\n",
          "            config.drawn_seed + config.model.latent_iterations,\n",
          "tests/lahr/training/test_loop.py -k identical_batches"),
    Fault("13", "starts that depend on how many parameters come before", LAHR,
          'f"{seed}/{name}".encode()', 'f"{seed}/{list(dict(model.named_parameters())).index(name)}".encode()',
          f"{IN_MODEL}/test_cells.py"),
    Fault("14", "a routed block that counts all keys", FLOPS,
          "_block_over(c, k, useful), float(", "_block_over(c, T, useful), float(", f"{IN_MODEL}/test_flops.py"),
    Fault("14", "nominal passes counted whatever was run", FLOPS,
          "c.latent_iterations if passes is None else passes)", "c.latent_iterations)", f"{IN_MODEL}/test_flops.py"),
    Fault("14", "tokens masked instead of skipped", MOD,
          "selected_BT, places_BK = top_k_BT, top_BK",
          "selected_BT, places_BK = top_k_BT, torch.arange(x_BTD.shape[1]).expand_as(top_k_BT)",
          f"{IN_MODEL}/test_flops.py"),
    Fault("threshold router", "top-k in training", LAHR,
          'if self.training and self.config.mod_router != "threshold" else "causal"',
          'if self.training else "causal"', f"{IN_MODEL}/test_mixture_of_depths.py"),
    Fault("threshold router", "the c quantile for 1 − c", MOD,
          "kthvalue(B * T - passing)", "kthvalue(passing)", f"{IN_MODEL}/test_mixture_of_depths.py"),
    Fault("random router", "a control that learns", MOD,
          'self.weight.requires_grad_(kind != "random")', "self.weight.requires_grad_(True)",
          f"{IN_MODEL}/test_mixture_of_depths.py"),
    Fault("router losses", "counts without a gradient, as in the published code", MOD,
          "p_B = scores_BT.sigmoid().mean(1)", "p_B = scores_BT.sigmoid().mean(1).detach()",
          f"{IN_MODEL}/test_mixture_of_depths.py"),
    Fault("sampled passes", "a gradient through all of them", LATENT,
          "torch.is_grad_enabled() and t > passes - BACKPROPAGATED", "torch.is_grad_enabled()",
          f"{IN_MODEL}/test_latent_reasoning.py"),
    Fault("exit gate", "leaving where the next pass gains much", LATENT,
          "torch.sigmoid(SHARPNESS * (LEAST_GAIN - gains))", "torch.sigmoid(SHARPNESS * (gains - LEAST_GAIN))",
          f"{IN_MODEL}/test_latent_reasoning.py"),
    Fault("ACT", "the last state for the weighted mean", LATENT,
          "return mean_BTD if act else h_BTD, reasoned", "return h_BTD, reasoned",
          f"{IN_MODEL}/test_latent_reasoning.py"),
    Fault("latent capacity", "deeper passes without what is injected", LATENT,
          "h_BKD = self.step(h_BKD, injected_BKD, chosen", "h_BKD = self.step(h_BKD, injected_BKD * 0, chosen",
          f"{IN_MODEL}/test_latent_reasoning.py"),
    Fault("slots", "one head's keys for all", MEMORY,
          "self.keys.transpose(1, 2))\n            top",
          "self.keys[:1].expand_as(self.keys).transpose(1, 2))\n            top",
          f"{IN_MODEL}/test_memory.py"),
    Fault("knn", "the segment's own keys remembered", MEMORY,
          "x_STHE[:s].flatten(0, 1)[first:]", "x_STHE[: s + 1].flatten(0, 1)[first:]", f"{IN_MODEL}/test_memory.py"),
    Fault("knn", "keys that carry a gradient", MEMORY,
          "k_BTHE.detach(), v_BTHE.detach()", "k_BTHE, v_BTHE", f"{IN_MODEL}/test_memory.py"),
    Fault("sampling", "top-p that drops the token which crosses p", GENERATION,
          "before_BV >= self.top_p", "sorted_BV.softmax(1).cumsum(1) >= self.top_p", f"{IN_MODEL}/test_generation.py"),
    Fault("head", "the target's share of the gradient left out", HEAD,
          "targets_S.clamp(min=0)] -= 1", "targets_S.clamp(min=0)] -= 0", f"{IN_MODEL}/test_head.py"),
    Fault("head", "a mean over slices", HEAD,
          "return total / _counted(targets)", "return total / x.shape[0]", f"{IN_MODEL}/test_head.py"),
    Fault("compilation", "the gradient of the step that compiles kept", LOOP,
          "        self.optimizer.zero_grad()\n        self.watch.alive()\n", "        self.watch.alive()\n",
          "tests/lahr/training/test_compilation.py"),
    Fault("compilation", "a threshold router's block compiled for every number of tokens", COMPILATION,
          "    if by_threshold or capacity_varies:\n", "    if False:\n",
          "tests/lahr/training/test_compilation.py -k vary"),
    Fault("capacity warm-up", "a block compiled for every capacity on the way", COMPILATION,
          "if by_threshold or capacity_varies:", "if by_threshold:", "tests/lahr/training/test_compilation.py -k vary"),
    Fault("own model", "one stream for all draws", "lahr/model/draws.py",
          "with torch.random.fork_rng(devices=[]), _Keyed(seed):", "with torch.random.fork_rng(devices=[]):",
          f"{IN_MODEL}/test_own.py"),
    Fault("own model", "a tied head written twice", "lahr/model/own.py",
          "        self.register_state_dict_post_hook(_leave_out_second_names)\n", "",
          "tests/lahr/training/test_own_models.py"),
    Fault("averaged weights", "the bias towards the start not corrected", "lahr/training/averaging.py",
          " / (1 - self.decay**step)", "", "tests/lahr/training/test_averaging.py"),
    Fault("averaged weights", "left in the model after an evaluation", "lahr/training/averaging.py",
          "            _put(own, model)\n", "            pass\n", "tests/lahr/training/test_averaging.py"),
    Fault("normalised queries and keys", "over the channels of all heads", LAYERS,
          "rms_norm(qk_BT2HE.to(weights_21E.dtype))",
          "rms_norm(qk_BT2HE.to(weights_21E.dtype).flatten(-2)).view(qk_BT2HE.shape)", f"{IN_MODEL}/test_layers.py"),
    Fault("zero start", "the core's projections, too, before their norms", LATENT,
          "out_scale, qk_norm=qk_norm)", "out_scale, qk_norm=qk_norm, zero_init=zero_init)",
          f"{IN_MODEL}/test_cells.py"),
    Fault("profile", "the backward pass counted where it runs", PROFILING,
          "forward_of.get(back.sequence_nr, (\"the rest\", \"\"))", "_place(event)",
          "tests/lahr/training/test_profiling.py"),
    Fault("effects", "the smaller of the two p decides", EFFECTS,
          "return np.maximum(paired_p(self.estimate, *self.blocked)",
          "return np.minimum(paired_p(self.estimate, *self.blocked)",
          f"{ANALYSIS}/test_sequential.py"),
    Fault("effects", "an interaction without its half", CONTRASTS, " * 2.0 ** (1 - len(term))", "",
          f"{ANALYSIS}/test_contrasts.py"),
    Fault("effects", "a level under another weighs as much as its parent", CONTRASTS,
          "np.where(active, [1 / len(f.labels) for f in factors], 1.0)", "np.ones(active.shape)",
          f"{ANALYSIS}/test_contrasts.py"),
    Fault("effects", "a seed's block is not taken out of the residual", EFFECTS,
          "centred = losses_SC - losses_SC.mean(-1, keepdims=True)\n    residuals = centred - centred.mean(-2",
          "centred = losses_SC\n    residuals = centred - centred.mean(-2", f"{ANALYSIS}/test_effects.py"),
    Fault("effects", "a seed-wise interval with the blocked degrees of freedom", EFFECTS,
          "(own.std(-2, ddof=1) / root, seeds - 1)", "(own.std(-2, ddof=1) / root, (cells - 1) * (seeds - 1))",
          f"{ANALYSIS}/test_effects.py"),
    Fault("effects", "Holm's p may fall along its steps", EFFECTS,
          "np.maximum.accumulate(np.take_along_axis(p, order, -1) * tests, axis=-1)",
          "np.take_along_axis(p, order, -1) * tests", f"{ANALYSIS}/test_effects.py"),
    Fault("effects", "equivalence by the narrower bound", EFFECTS,
          'np.minimum(outer["blocked_low"], outer["seedwise_low"])',
          'np.maximum(outer["blocked_low"], outer["seedwise_low"])',
          f"{ANALYSIS}/test_effects.py"),
    Fault("until decided", "every look spends α anew", SEQUENTIAL,
          "spending(fraction, alpha) - paid, spending(fraction, alpha)", "spending(fraction, alpha), 0.0",
          f"{ANALYSIS}/test_sequential.py"),
    Fault("until decided", "Holm counts effects that are rejected already", SEQUENTIAL,
          "m = np.maximum((~np.isnan(p)).sum(-1, keepdims=True) - np.arange(terms), 0)",
          "m = np.maximum(terms - np.arange(terms), 0) * np.ones(p.shape, int)", f"{ANALYSIS}/test_sequential.py"),
    Fault("until decided", "equivalence at the level of one look", SEQUENTIAL,
          "fit.halves(nominal(fractions, 2 * ALPHA))", "fit.halves(2 * ALPHA)", f"{ANALYSIS}/test_sequential.py"),
    Fault("until decided", "what was found after the sweep had stopped stays", SEQUENTIAL,
          "rejected_at=np.where(late, 0, rejected)", "rejected_at=rejected", f"{ANALYSIS}/test_sequential.py"),
    Fault("until decided", "the bound of what is equivalent from the last look", SEQUENTIAL,
          "at_bounds = np.where(equivalent > 0, np.searchsorted(taken, equivalent), at[..., None])",
          "at_bounds = at[..., None] + 0 * equivalent", f"{ANALYSIS}/test_sequential.py"),
    Fault("calibration", "relabelled trials without Holm", "sweeps/analysis/calibration.py",
          "float((holm(p) < ALPHA).any(-1).mean())", "float((p < ALPHA).any(-1).mean())",
          f"{ANALYSIS}/test_calibration.py"),
    Fault("power", "a shifted t for the noncentral one", "sweeps/analysis/power.py",
          "stats.nct.sf(_critical(blocks, tests, alpha), blocks - 1, noncentrality)",
          "stats.t.sf(_critical(blocks, tests, alpha) - noncentrality, blocks - 1)", f"{ANALYSIS}/test_power.py"),
    Fault("comparisons", "synergy without the base", "sweeps/analysis/comparisons.py",
          '"base": len(singles) - 1.0', '"base": -1.0', f"{ANALYSIS}/test_comparisons.py"),
    Fault("budgets", "a cell given more where a step costs more", "sweeps/engine/budget.py",
          'steps * cost["base"] / each', 'steps * each / cost["base"]', "tests/sweeps/engine/test_design.py"),
    Fault("capacity warm-up", "a line that begins a step late", "lahr/training/plan.py",
          "(1 - step / falling)", "(1 - max(step - 1, 0) / falling)", "tests/lahr/training/test_capacity_warmup.py"),
    Fault("capacity warm-up", "steps counted at the model's own capacity", LOOP,
          "self.config.model if c is None else replace(self.config.model, mod_capacity=c)", "self.config.model",
          "tests/lahr/training/test_capacity_warmup.py"),
    Fault("capacity warm-up", "thresholds for the model's capacity from the beginning", LOOP,
          "torch.cat(causal_scores, dim=1)), falling)", "torch.cat(causal_scores, dim=1)))",
          "tests/lahr/training/test_capacity_warmup.py"),
    Fault("capacity warm-up", "a threshold that all exceed stays in the mean", MOD,
          "(self.observations == 0) | (self.threshold <= BELOW_ALL)", "self.observations == 0",
          "tests/lahr/training/test_capacity_warmup.py"),
    Fault("capacity warm-up", "the steps of a branch counted back from its start", LOOP,
          "        self.load(here)\n        self.pairing = pairing\n",
          "        self.load(here)\n        self.passes, own = [torch.zeros(())] * horizon, self._executed_flops()\n",
          "tests/lahr/training/test_decayed_points.py"),
    Fault("noise", "in evaluation too", MOD, "if self.noise and self.training:", "if self.noise:",
          f"{IN_MODEL}/test_mixture_of_depths.py"),
    Fault("noise", "in the gate", MOD, "r_BK = scores_BT.gather(1, places_BK)", "r_BK = picked_BT.gather(1, places_BK)",
          f"{IN_MODEL}/test_mixture_of_depths.py"),
    Fault("curriculum", "questions drawn from all stages", BATCHES, "len(rows) // stages", "len(rows)",
          "tests/lahr/data/test_curriculum.py"),
    Fault("curriculum", "the last stage before the curriculum's end", "lahr/config.py",
          "(first + stages - 2)", "(first + stages - 1)", "tests/lahr/data/test_curriculum.py"),
    Fault("curriculum", "a first stage as long as the others", "lahr/config.py",
          "staged, first = self.curriculum * steps, self.first_stage", "staged, first = self.curriculum * steps, 1",
          "tests/lahr/data/test_curriculum.py"),
    Fault("curriculum", "a last stage that is cut off", "lahr/data/preparation.py",
          'data.stages == 1 or manifest["splits"]["train"]["ended"]', "True", "tests/lahr/data/test_curriculum.py"),
    Fault("mixture", "a part that ends while the tokenizer reads", "lahr/data/preparation.py",
          "with contextlib.suppress(RanOut):", "with contextlib.nullcontext():",
          "tests/lahr/data/test_mixed_preparation.py"),
    Fault("mixture", "a mixture that is shorter than was asked for", "lahr/data/preparation.py",
          '            if name == "train":\n                raise\n', "", "tests/lahr/data/test_mixed_preparation.py"),
    Fault("prepare", "what was published is not looked for", "lahr/__main__.py",
          "[published_at(shared)] if shared is not None else []", "", "tests/lahr/test_prepare.py"),
    Fault("answers", "what is let through of answers' first tokens alone", EVALUATION,
          "(labels_BT.flatten().long() % FIRST).clamp(max=UNCOUNTED)",
          "(labels_BT.flatten().long() - FIRST).clamp(0, UNCOUNTED)", "tests/lahr/training/test_evaluation.py"),
    Fault("answers", "a trial that diverged in the table", "sweeps/reporting/answers.py",
          'trials[trials["status"] != "diverged"] if "status" in trials else trials', "trials",
          "tests/sweeps/reporting/test_answers.py"),
    Fault("answers", "differences that are not paired", "sweeps/reporting/answers.py",
          '(by_seed[cell] - by_seed["base"])', '(by_seed[cell] - by_seed["base"].mean())',
          "tests/sweeps/reporting/test_answers.py"),
    Fault("probes", "the control of rows as that of windows", "sweeps/engine/controls.py",
          "segments=segments", "segments=1", "tests/sweeps/test_probes.py -k cells"),
    Fault("probes", "one arm of thoughts alone is the preset's", "sweeps/coconut.py",
          "if len(self.thoughts) == 1 else config", "if not self.thoughts else config",
          "tests/sweeps/test_probes.py -k arm"),
]  # fmt: skip


def catch(fault: Fault) -> str:
    """`caught`, with the name of the first test that failed, or `MISSED`, with what pytest said."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary)
        for name in ("lahr", "sweeps", "tests", "benchmarks", "cluster", "docs"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "Makefile"):
            shutil.copy(ROOT / name, copy / name)
        source = copy / fault.file
        source.write_text(source.read_text().replace(fault.old, fault.new))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *_words(fault.tests)]
        done = subprocess.run(
            command, cwd=copy, env={**os.environ, "PYTHONPATH": str(copy)}, capture_output=True, text=True
        )
    # Tests that ran and failed; 2 and more are pytest's own troubles, which catch nothing.
    if done.returncode == 1 and (failed := re.search(r"^FAILED \S+?::(\w+)", done.stdout, re.M)):
        return f"caught by {failed[1]}"
    return f"MISSED (pytest's status {done.returncode}): {' '.join(done.stdout.split()[-12:])}"


def _words(tests: str) -> list[str]:
    where, _, chosen = tests.partition(" -k ")
    return [where, *(["-k", chosen] if chosen else [])]


def main(words: list[str]) -> int:
    """Applies the faults that the words choose; 0 if all were caught, 1 if one was not, 2 if none was chosen."""
    chosen = [f for f in FAULTS if not words or any(w == f.property or w in f"{f.file} {f.what}" for w in words)]
    if not chosen:
        print(f"no fault has {' or '.join(map(repr, words))} in its property, file or description", file=sys.stderr)
        return 2
    missed = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for n, (fault, said) in enumerate(zip(chosen, pool.map(catch, chosen), strict=True), 1):
            missed += not said.startswith("caught")
            print(f"{n:2d}/{len(chosen)}  {fault.property:>16}  {fault.what}: {said}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} faults were caught")
    return min(missed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
