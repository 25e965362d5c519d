"""The models' forward: against transformers at full width, against the slow computation at every sub-network."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig

import dynabert_kernels as dk
from dynabert import ElasticBertConfig, ElasticBertForSequenceClassification, ElasticBertModel, SubnetConfig
from dynabert.configuration import Subnet
from dynabert.modeling.encoder import relative_position_buckets
from dynabert.modeling.names import to_elastic
from tests.dynabert.slow_model import Slow
from tests.dynabert.tiny_networks import CONFIGS, TINY, close, padded_batch, plain_model, slow_model, text_of

pytestmark = pytest.mark.usefixtures("poisoned")

LENGTHS = [7, 1, 13, 4, 9]  # a prime batch: shortest possible, longest, in between
SUBNETS: list[Subnet] = [
    SubnetConfig(0.75),
    SubnetConfig(0.5),
    SubnetConfig(0.25),
    SubnetConfig(1.0, 0.75),
    SubnetConfig(0.5, 0.5),
    SubnetConfig(0.25, 0.25),
    SubnetConfig(0.5, layers=(0, 3)),
    SubnetConfig(heads=(4, 1, 0, 2), neurons=(7, 40, 0, 1)),
    dk.SubnetShape((0, 3, 0, 0), (0, 13, 0, 0)),
    "w0.75-d0.75",
]


def elastic(plain: nn.Module) -> ElasticBertForSequenceClassification:
    """The elastic classifier with the weights of a plain one."""
    config = ElasticBertConfig.from_plain(plain.config)
    model = ElasticBertForSequenceClassification(config).eval()
    state = to_elastic(plain.state_dict(), config, model.parts)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("_order") for name in missing)
    return model


def slow_subnet(
    slow: Slow, plain: nn.Module, batch: dict[str, Tensor], row: int, shape: dk.SubnetShape
) -> tuple[list[Tensor], Tensor]:
    """What one text should give at ``shape``."""
    heads: list[Sequence[int]] = [range(count) for count in shape.heads]
    neurons: list[Sequence[int]] = [range(count) for count in shape.neurons]
    return slow(*text_of(plain, batch, row), heads=heads, neurons=neurons)


# Against transformers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu"])
def test_full_width_equals_transformers(architecture: str, act: str) -> None:
    plain = plain_model(architecture, hidden_act=act)
    model = elastic(plain)
    batch = padded_batch(plain, LENGTHS)
    with torch.no_grad():
        wanted = plain(**batch, output_hidden_states=True)
        found = model(**batch, output_hidden_states=True)
    close(found.logits, wanted.logits)
    real = batch["attention_mask"].bool()
    assert len(found.hidden_states) == len(wanted.hidden_states) == 5
    for ours, theirs in zip(found.hidden_states, wanted.hidden_states, strict=True):
        close(ours[real], theirs[real])
        assert not ours[~real].any()


def test_without_a_mask_every_token_counts(architecture: str) -> None:
    plain = plain_model(architecture)
    model = elastic(plain)
    batch = padded_batch(plain, [6, 6, 6])
    batch["input_ids"][1, 4] = plain.config.pad_token_id  # a real padding id inside a text
    del batch["attention_mask"]
    with torch.no_grad():
        close(model(**batch).logits, plain(**batch).logits)


@pytest.mark.parametrize("side", ["left", "holes"])
def test_padding_elsewhere(architecture: str, side: str) -> None:
    """Positions are transformers' own: the column in BERT, the count of real ids elsewhere."""
    plain = plain_model(architecture)
    model = elastic(plain)
    if side == "left":
        batch = padded_batch(plain, LENGTHS, "left")
    else:
        batch = padded_batch(plain, [9, 9, 9])
        # MPNet refuses gaps inside a text; at its ends they are padding.
        inside = ((0, 3), (0, 4)) if architecture != "mpnet" else ()
        for row, column in (*inside, (1, 8), (2, 0)):
            batch["attention_mask"][row, column] = 0
            batch["input_ids"][row, column] = plain.config.pad_token_id
    with torch.no_grad():
        wanted = plain(**batch, output_hidden_states=True)
        found = model(**batch, output_hidden_states=True)
    real = batch["attention_mask"].bool()
    for ours, theirs in zip(found.hidden_states, wanted.hidden_states, strict=True):
        close(ours[real], theirs[real])
    # transformers pools column 0 even where it is padding; ours is the first real token.
    first = batch["attention_mask"].argmax(1)
    states = wanted.hidden_states[-1][torch.arange(len(first)), first]
    slow = slow_model(plain)
    for row in range(len(first)):
        close(found.logits[row], slow.classify(states[row].double()))


def test_given_positions(architecture: str) -> None:
    plain = plain_model(architecture)
    model = elastic(plain)
    batch = padded_batch(plain, [5, 3])
    positions = torch.tensor([[9, 3, 3, 40, 2]])
    with torch.no_grad():
        wanted = plain(**batch, position_ids=positions.expand(2, 5)).logits
        close(model(**batch, position_ids=positions).logits, wanted)


def test_every_gradient_equals_transformers(architecture: str) -> None:
    plain = plain_model(architecture).double()
    model = elastic(plain_model(architecture)).double()
    batch = padded_batch(plain, LENGTHS)
    labels = torch.tensor([0, 2, 1, 1, 0])
    plain(**batch, labels=labels).loss.backward()
    loss = model(**batch, labels=labels).loss
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters() if parameter.grad is not None}
    wanted = to_elastic(gradients, model.config, model.parts)
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        if name.endswith("qkv_bias"):
            # A bias on keys shifts all scores of a query alike: its gradient is 0, in both up to rounding.
            assert gradient[:, 1].abs().max() < 1e-12
            assert found[name][:, 1].abs().max() < 1e-12
        close(found[name], gradient, 1e-9)


def test_the_padding_row_gets_no_gradient(architecture: str) -> None:
    plain = plain_model(architecture)
    model = elastic(plain)
    batch = padded_batch(plain, [6, 6])
    batch["input_ids"][:, 3] = model.config.padding_idx  # as a real token
    model(**batch, labels=torch.tensor([0, 1])).loss.backward()
    gradient = model.encoder.embeddings.word_embeddings.weight.grad
    assert not gradient[model.config.padding_idx].any()
    assert gradient[batch["input_ids"][0, 0]].any()


def test_bare_encoder(architecture: str) -> None:
    torch.manual_seed(3)
    plain = AutoModel.from_config(CONFIGS[architecture](**TINY)).eval()
    config = ElasticBertConfig.from_plain(plain.config)
    model = ElasticBertModel(config).eval()
    model.load_state_dict(plain.state_dict())  # a plain state dict is one of the two forms it takes
    batch = padded_batch(plain, LENGTHS)
    with torch.no_grad():
        wanted, found = plain(**batch), model(**batch)
        listed = model(**batch, subnet=[None, "w0.5", "d0.5", None, "w0.25"])
        alone = model(**{name: value[2:3] for name, value in batch.items()}, subnet="d0.5")
    real = batch["attention_mask"].bool()
    close(found.last_hidden_state[real], wanted.last_hidden_state[real])
    assert not found.last_hidden_state[~real].any()
    close(found.pooler_output, wanted.pooler_output)
    close(listed.last_hidden_state[0][real[0]], wanted.last_hidden_state[0][real[0]])
    close(listed.last_hidden_state[2], alone.last_hidden_state[0])
    close(listed.pooler_output[2], alone.pooler_output[0])
    without = ElasticBertModel(config, add_pooling_layer=False)
    assert without(**batch).pooler_output is None


# Sub-networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subnet", SUBNETS, ids=str)
@pytest.mark.parametrize("rule", ["keep_last", "reference"])
def test_every_subnet_equals_the_slow_computation(architecture: str, subnet: Subnet, rule: str) -> None:
    plain = plain_model(architecture)
    model, slow = elastic(plain), slow_model(plain)
    model.config.depth_rule = rule
    batch = padded_batch(plain, [6, 1, 11])
    shape = model.shape(subnet)
    with torch.no_grad():
        found = model(**batch, subnet=subnet, output_hidden_states=True)
    assert len(found.hidden_states) == 1 + len(shape.kept_layers)
    for row in range(3):
        states, logits = slow_subnet(slow, plain, batch, row, shape)
        close(found.logits[row], logits)
        real = batch["attention_mask"][row].bool()
        for ours, theirs in zip(found.hidden_states, states, strict=True):
            close(ours[row][real], theirs)


def test_mixed_batch_gives_each_text_what_it_gets_alone(architecture: str) -> None:
    plain = plain_model(architecture)
    model = elastic(plain)
    subnets = [*SUBNETS, None, *SUBNETS[::-1]]
    lengths = [(5 * row) % 12 + 1 for row in range(len(subnets))]
    batch = padded_batch(plain, lengths)
    with torch.no_grad():
        together = model(**batch, subnet=subnets).logits
        for row, subnet in enumerate(subnets):
            one = {name: value[row : row + 1] for name, value in batch.items()}
            close(together[row], model(**one, subnet=subnet).logits[0])


def test_mixed_batch_has_the_gradients_of_its_parts() -> None:
    plain = plain_model("mpnet")
    model = elastic(plain).double()
    subnets: list[Subnet] = [None, "w0.5-d0.5", "h4,1,0,2-n7,40,0,1"]
    batch = padded_batch(plain, [5, 8, 3])
    labels = torch.tensor([0, 2, 1])
    model(**batch, labels=labels, subnet=subnets).loss.backward()
    together = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for row, subnet in enumerate(subnets):
        one = {name: value[row : row + 1] for name, value in batch.items()}
        (model(**one, labels=labels[row : row + 1], subnet=subnet).loss / 3).backward()
    for name, parameter in model.named_parameters():
        close(together[name], parameter.grad, 1e-9)


def test_inactive_weights_are_not_read(architecture: str) -> None:
    """A sub-network gives the same with NaN in every weight that it does not use."""
    plain = plain_model(architecture)
    model = elastic(plain)
    batch = padded_batch(plain, LENGTHS)
    shape = model.shape("w0.5-d0.5")
    with torch.no_grad():
        wanted = model(**batch, subnet="w0.5-d0.5").logits
        for layer, heads, neurons in zip(model.encoder.elastic_layers, shape.heads, shape.neurons, strict=True):
            layer.qkv_weight[heads:] = torch.nan
            layer.qkv_bias[heads:] = torch.nan
            layer.attention_weight[:, heads * 6 :] = torch.nan
            layer.ffn_in_weight[neurons:] = torch.nan
            layer.ffn_in_bias[neurons:] = torch.nan
            layer.ffn_out_weight[:, neurons:] = torch.nan
            if heads == 0:
                for norm in (layer.attention_norm, layer.ffn_norm):
                    norm.weight.fill_(torch.nan)
        assert torch.equal(model(**batch, subnet="w0.5-d0.5").logits, wanted)


@pytest.mark.parametrize("learning", [False, True])  # in one call, and layer by layer
def test_no_weight_is_copied_and_nothing_remembers_a_width(monkeypatch: pytest.MonkeyPatch, learning: bool) -> None:
    plain = plain_model("bert")
    model = elastic(plain)
    seen: list[int] = []

    def noting(name: str) -> Any:
        op = getattr(dk, name)

        def call(*args: Any, **kwargs: Any) -> Tensor:
            seen.extend(value.data_ptr() for value in tree_leaves(args) if isinstance(value, Tensor))
            return op(*args, **kwargs)

        return call

    for name in ("embed_layer_norm", *(("elastic_attention", "elastic_ffn") if learning else ("elastic_encoder",))):
        monkeypatch.setattr(dk, name, noting(name))
    before = {name: str(vars(module)) for name, module in model.named_modules()}
    with torch.set_grad_enabled(learning):
        model(**padded_batch(plain, LENGTHS), subnet="w0.25-d0.5")
    assert {name: str(vars(module)) for name, module in model.named_modules()} == before
    for layer in (1, 3):  # the kept ones
        for name, parameter in model.encoder.layers[layer].named_parameters():
            assert parameter.data_ptr() in seen, name
    for parameter in model.encoder.embeddings.parameters():
        assert parameter.data_ptr() in seen


def test_two_threads_two_widths() -> None:
    plain = plain_model("bert")
    model = elastic(plain)
    batch = padded_batch(plain, LENGTHS)
    with torch.no_grad():
        wanted = {subnet: model(**batch, subnet=subnet).logits for subnet in ("w1-d1", "w0.25-d0.5")}
    wrong: list[str] = []

    def ask(subnet: str) -> None:
        with torch.no_grad():
            for _ in range(10):
                if not torch.equal(model(**batch, subnet=subnet).logits, wanted[subnet]):
                    wrong.append(subnet)

    threads = [threading.Thread(target=ask, args=(subnet,)) for subnet in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# The second door ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row_bucket", [1, 16, 64])
def test_second_door_equals_the_first(architecture: str, row_bucket: int) -> None:
    plain = plain_model(architecture)
    model = elastic(plain)
    batch = padded_batch(plain, LENGTHS)
    texts = [text_of(plain, batch, row) for row in range(len(LENGTHS))]
    types = [text[2] for text in texts] if architecture == "bert" else None
    for subnet in ("w0.5-d0.75", [None, "w0.5", "d0.5", "w0.25", None]):
        packed, plan = model.pack([text[0] for text in texts], types, subnet=subnet, row_bucket=row_bucket)
        assert packed.num_rows == plan.num_rows == -(-sum(LENGTHS) // row_bucket) * row_bucket
        with torch.no_grad():
            wanted = model(**batch, subnet=subnet)
            found = model(batch=packed, plan=plan, output_hidden_states=True)
        close(found.logits, wanted.logits)
        assert found.hidden_states[0].shape == (plan.num_rows, 24)


def test_second_door_takes_labels_and_returns_the_callers_order() -> None:
    plain = plain_model("roberta")
    model = elastic(plain)
    batch = padded_batch(plain, LENGTHS)
    labels = torch.tensor([0, 1, 2, 0, 1])
    subnets: list[Subnet] = ["w0.25", None, "w0.5", None, "w0.25"]
    packed, plan = model.pack([text_of(plain, batch, row)[0] for row in range(5)], subnet=subnets)
    assert packed.order is not None
    assert packed.order.tolist() == [1, 3, 2, 0, 4]
    with torch.no_grad():
        found = model(batch=packed, plan=plan, labels=labels)
        wanted = model(**batch, labels=labels, subnet=subnets)
    close(found.logits, wanted.logits)
    close(found.loss, wanted.loss)


def test_second_door_with_padding_ids_inside_a_text(architecture: str) -> None:
    """Such an id is a token like any other, at transformers' position for it."""
    plain = plain_model(architecture)
    model = elastic(plain)
    pad = plain.config.pad_token_id
    ids = [[5, pad, 6, 7], [8, 9, pad, pad]]
    with torch.no_grad():
        wanted = plain(input_ids=torch.tensor(ids)).logits
        close(model(input_ids=torch.tensor(ids)).logits, wanted)
        for subnet in (None, [None, "w1"]):
            batch, plan = model.pack(ids, subnet=subnet, row_bucket=16)
            close(model(batch=batch, plan=plan).logits, wanted)


def test_second_door_stacked_depths() -> None:
    """The same texts once for each sub-network in one plan, as a trainer stacks them."""
    plain = plain_model("bert")
    model = elastic(plain)
    ids = [[5, 6, 7], [8, 9]]
    subnets: list[Subnet] = [None, None, "w0.5-d0.5", "w0.5-d0.5"]
    packed, plan = model.pack(ids * 2, subnet=subnets)
    with torch.no_grad():
        stacked = model(batch=packed, plan=plan, output_hidden_states=True)
        for rows, start, subnet in ((slice(0, 2), 0, None), (slice(2, 4), 5, "w0.5-d0.5")):
            alone = model(*[], **dict(zip(("batch", "plan"), model.pack(ids, subnet=subnet), strict=True)))
            close(stacked.logits[rows], alone.logits)
            states = model.encoder(
                **dict(zip(("batch", "plan"), model.pack(ids, subnet=subnet), strict=True)), output_hidden_states=True
            ).hidden_states
            close(stacked.hidden_states[-1][start : start + 5], states[-1])


# Losses and training --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "changes"),
    [
        (torch.tensor([0, 2, 1]), {}),
        (torch.tensor([0, -100, 1]), {}),
        (torch.tensor([[0], [2], [1]], dtype=torch.int32), {}),
        (torch.tensor([0.5, -1.0, 2.0]), {"num_labels": 1}),
        (torch.tensor([[0.5], [-1.0], [2.0]]), {"num_labels": 1}),
        (torch.rand(3, 3), {"problem_type": "regression"}),
        (torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]), {}),
        (torch.ones(3, 3), {"problem_type": "multi_label_classification"}),
    ],
)
def test_losses_equal_transformers(labels: Tensor, changes: dict[str, Any]) -> None:
    plain = plain_model("bert", **changes)
    model = elastic(plain)
    batch = padded_batch(plain, [5, 3, 8])
    with torch.no_grad():
        found = model(**batch, labels=labels)
        wanted = plain(**batch, labels=labels.long() if labels.dtype == torch.int32 else labels)
    close(found.loss, wanted.loss)
    assert model.config.problem_type == changes.get("problem_type")  # not changed by a call


def test_a_batch_of_one_regression_label() -> None:
    plain = plain_model("bert", num_labels=1)
    model = elastic(plain)
    batch = padded_batch(plain, [4])
    with torch.no_grad():
        close(model(**batch, labels=torch.tensor([0.5])).loss, plain(**batch, labels=torch.tensor([0.5])).loss)


def test_half_precision_logits_have_a_float32_loss() -> None:
    plain = plain_model("bert")
    model = elastic(plain).bfloat16()
    output = model(**padded_batch(plain, [4, 2]), labels=torch.tensor([0, 1]))
    assert output.logits.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32


def test_float64_is_float64() -> None:
    plain = plain_model("roberta")
    model, slow = elastic(plain).double(), slow_model(plain)
    batch = padded_batch(plain, [4, 9])
    output = model(**batch, labels=torch.tensor([0, 1]))
    assert output.loss.dtype == torch.float64
    for row in range(2):
        close(output.logits[row].detach(), slow(*text_of(plain, batch, row))[1], 1e-12)


def test_dropout_follows_the_seed() -> None:
    plain = plain_model("bert", hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    model = elastic(plain).train()
    batch = padded_batch(plain, LENGTHS)

    def draw(seed: int, **changes: Any) -> Tensor:
        torch.manual_seed(seed)
        return model(**batch, **changes).logits

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    state = torch.tensor([5, 9])
    model.classifier.dropout.p = 0.0
    assert torch.equal(draw(0, dropout_state=state), draw(1, dropout_state=state))
    model.eval()
    assert torch.equal(draw(0), draw(1))


def test_dropout_has_the_right_rate_and_scale() -> None:
    model = elastic(plain_model("bert", hidden_dropout_prob=0.25)).train()
    batch, plan = model.pack([[7] * 40, [8] * 9])
    with torch.no_grad():
        wanted = model.encoder.embeddings(batch, plan, None)
        found = model.encoder.embeddings(batch, plan, model.encoder.draw_dropout_state())
    dropped = found == 0
    assert 0.2 < dropped.double().mean() < 0.3  # of 1,176 entries: 4 standard deviations
    close(found[~dropped], wanted[~dropped] / 0.75)


def test_a_few_steps_of_training_learn() -> None:
    torch.manual_seed(0)
    plain = plain_model("mpnet", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = elastic(plain).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = padded_batch(plain, [5, 7, 3, 8])
    labels = torch.tensor([0, 1, 2, 1])
    losses = []
    for _ in range(8):
        for subnet in (None, "w0.5-d0.5"):
            loss = model(**batch, labels=labels, subnet=subnet).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_return_dict_and_output_forms() -> None:
    plain = plain_model("bert")
    model = elastic(plain)
    batch = padded_batch(plain, [4, 2])
    output = model(**batch, labels=torch.tensor([0, 1]))
    assert list(output) == ["loss", "logits"]
    loss, logits = model(**batch, labels=torch.tensor([0, 1]), return_dict=False)
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)
    model.config.output_hidden_states = True
    assert len(model(**batch).hidden_states) == 5


# Extraction and the rest ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subnet", [None, *SUBNETS], ids=str)
def test_extract_computes_the_same(architecture: str, subnet: Subnet) -> None:
    plain = plain_model(architecture)
    model = elastic(plain)
    small = model.extract(subnet)
    batch = padded_batch(plain, LENGTHS)
    shape = model.shape(subnet)
    with torch.no_grad():
        close(small(**batch).logits, model(**batch, subnet=subnet).logits)
    kept = shape.kept_layers
    assert small.config.layer_index == kept
    assert small.config.layer_heads == tuple(shape.heads[layer] for layer in kept)
    assert small.config.layer_neurons == tuple(shape.neurons[layer] for layer in kept)
    assert not small.training
    pointers = {parameter.data_ptr() for parameter in model.parameters()}
    assert not any(parameter.data_ptr() in pointers for parameter in small.parameters())
    assert all(parameter.requires_grad for parameter in small.parameters())
    # A width of the small one is a width of its own layers.
    if len(set(small.config.layer_heads)) == 1 and small.config.num_attention_heads == 4:
        with torch.no_grad():
            assert small(**batch, subnet="w0.5").logits.shape == (5, 3)


def test_extract_of_an_extract() -> None:
    plain = plain_model("mpnet")
    model = elastic(plain)
    batch = padded_batch(plain, LENGTHS)
    small = model.extract("w0.5").extract("w0.5-d0.5")
    assert small.config.layer_index == (1, 3)
    with torch.no_grad():
        close(small(**batch).logits, model(**batch, subnet="w0.25-d0.5").logits)


def test_extract_keeps_dtype_and_mode() -> None:
    model = ElasticBertForSequenceClassification(BertConfig(**TINY)).bfloat16().train()
    small = model.extract("w0.5")
    assert small.dtype == torch.bfloat16
    assert small.training


def test_models_can_be_made_from_any_configuration() -> None:
    torch.manual_seed(7)
    one = ElasticBertForSequenceClassification(BertConfig(**TINY))
    torch.manual_seed(7)
    two = ElasticBertForSequenceClassification(ElasticBertConfig.from_plain(BertConfig(**TINY)))
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, two.get_parameter(name))
    assert not one.encoder.embeddings.word_embeddings.weight[0].any()  # the padding token
    auto = AutoModelForSequenceClassification.from_config(two.config)
    assert isinstance(auto, ElasticBertForSequenceClassification)
    assert isinstance(AutoModel.from_config(two.config), ElasticBertModel)
    assert copy.deepcopy(one).config == one.config
    with pytest.raises(TypeError, match="config must be a configuration; got dict"):
        ElasticBertModel({})  # type: ignore[arg-type]


def test_relative_buckets_equal_transformers() -> None:
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    distance = torch.arange(-599, 600)
    assert torch.equal(relative_position_buckets(600, 32), MPNetEncoder.relative_position_bucket(distance))


def test_embeddings_can_be_resized() -> None:
    model = ElasticBertForSequenceClassification(BertConfig(**TINY))
    model.resize_token_embeddings(64)
    assert model.config.vocab_size == 64
    assert model.get_input_embeddings().weight.shape == (64, 24)
    assert model(input_ids=torch.tensor([[63, 1]])).logits.shape == (1, 3)


def test_a_problem_type_or_a_head_that_there_is_not_is_refused() -> None:
    """Labels of an unknown kind were learned as if a text had several."""
    model = ElasticBertForSequenceClassification(CONFIGS["bert"](**TINY))
    model.config.problem_type = "single_label"
    with pytest.raises(
        ValueError, match="problem_type is 'single_label'; allowed: None, 'single_label_classification'"
    ):
        model(input_ids=torch.tensor([[5, 6]]), labels=torch.zeros(1, 3))
    with pytest.raises(ValueError, match="num_labels is 0; allowed: 1 or more"):
        ElasticBertForSequenceClassification(CONFIGS["bert"](**{**TINY, "num_labels": 0}))
