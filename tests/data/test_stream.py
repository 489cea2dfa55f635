"""The stream: a step is a function of (data, seed, step), and resumes exactly."""

import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from corpora import TOKENIZER, make_corpus, row_hashes, texts

from nanolit.data.packing import Packing
from nanolit.data.parquet import Corpus, Shard
from nanolit.data.sequence import DocumentSequence
from nanolit.data.stream import PretrainStream, Step, ahead, deal, num_lanes

packings = pytest.mark.parametrize("packing", ["bestfit", "bestfit_split", "flat"])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def make_stream(corpus: Corpus, **changes) -> PretrainStream:
    """Eight rows of 24 a step in four lanes; an epoch of the corpus takes some 30 steps."""
    settings = {"context": 24, "rows": 8, "micro_batch": 2, "seed": 1, "packing": "bestfit", "lanes": 4}
    return PretrainStream(corpus, TOKENIZER, **settings | {"buffer": 6} | changes)


def take(stream: PretrainStream, count: int) -> list[Step]:
    return list(islice(stream, count))


def hashes(streams: Sequence[PretrainStream], count: int) -> list[list[str]]:
    """The row hashes of each step, over all ranks in their order."""
    ranks = [take(stream, count) for stream in streams]
    return [[row for step in steps for row in row_hashes(step)] for steps in zip(*ranks, strict=True)]


@packings
def test_rows_are_equal_on_any_number_of_ranks_and_in_any_micro_batch(
    corpus: Corpus, packing: Packing
) -> None:
    step = {"packing": packing, "lanes": 8, "rows": 16}
    expected = hashes([make_stream(corpus, **step, micro_batch=8)], 40)
    for world in (1, 2, 4, 8):
        for micro_batch in (1, 2):
            ranks = [
                make_stream(corpus, **step, rank=rank, world=world, micro_batch=micro_batch)
                for rank in range(world)
            ]
            assert hashes(ranks, 40) == expected


@packings
@pytest.mark.parametrize("stop", [1, 7, 38])
def test_resume_is_exact_with_another_number_of_ranks(corpus: Corpus, packing: Packing, stop: int) -> None:
    """Oracle: the run that was not stopped. 38 steps end in the second epoch; positions pass through JSON."""
    expected = hashes([make_stream(corpus, packing=packing)], stop + 12)[stop:]
    for before, after in ((1, 1), (2, 4), (4, 1)):
        ranks = [make_stream(corpus, packing=packing, rank=rank, world=before) for rank in range(before)]
        positions = json.loads(json.dumps([take(stream, stop)[-1].position for stream in ranks]))
        resumed = [make_stream(corpus, packing=packing, rank=rank, world=after) for rank in range(after)]
        for stream in resumed:
            stream.load_position(positions)
        assert hashes(resumed, 12) == expected


def test_the_position_counts_cropped_tokens_on(corpus: Corpus) -> None:
    whole = take(make_stream(corpus), 20)
    resumed = make_stream(corpus)
    resumed.load_position([whole[9].position])
    assert [step.cropped_fraction for step in take(resumed, 10)] == [
        step.cropped_fraction for step in whole[10:]
    ]


def test_the_flat_stream_crops_nothing_and_best_fit_declares_it(corpus: Corpus) -> None:
    assert take(make_stream(corpus, packing="flat"), 30)[-1].cropped_fraction == 0
    step = take(make_stream(corpus), 30)[-1]
    cropped = sum(lane["num_cropped"] for lane in step.position["lanes"].values())
    assert 0.2 < step.cropped_fraction == cropped / (30 * 8 * 25 + cropped) < 0.9


def test_every_token_of_every_document_is_in_a_row_once_or_still_held(corpus: Corpus) -> None:
    """Oracle: the documents drawn so far, tokenized anew, over two epochs; BOS apart, which repeats."""
    steps = take(make_stream(corpus, packing="bestfit_split"), 80)
    found: Counter[int] = Counter()
    for ids_BT, targets_BT in (pair for step in steps for pair in step.micro_batches):
        found.update(torch.cat([ids_BT, targets_BT[:, -1:]], dim=1).flatten().tolist())
    groups = [(shard, n) for shard in corpus.train_shards for n in range(len(shard.group_sizes))]
    expected: Counter[int] = Counter()
    for lane, state in steps[-1].position["lanes"].items():
        sequence = DocumentSequence(deal(groups, 4)[int(lane)], lane=int(lane), seed=1)
        drawn = TOKENIZER.encode_batch(sequence.texts(range(state["next"])).to_pylist(), bos=True)
        for tokens in drawn:
            expected.update(tokens.tolist())
        for number, start in zip(state["documents"], state["starts"], strict=True):
            found.update(drawn[number][start:].tolist())
        assert state["num_cropped"] == 0  # a rest of one token is held again where rows have 25
    del found[TOKENIZER.bos_id], expected[TOKENIZER.bos_id]
    assert steps[-1].epoch > 1.5
    assert found == expected


def test_iterating_again_continues(corpus: Corpus) -> None:
    stream = make_stream(corpus)
    again = hashes([stream], 3) + hashes([stream], 3)
    assert again == hashes([make_stream(corpus)], 6)


def test_another_seed_gives_another_order(corpus: Corpus) -> None:
    assert hashes([make_stream(corpus, seed=2)], 3) != hashes([make_stream(corpus)], 3)


def num_used(step: Step) -> int:
    """The tokens that a step's lanes have placed or cropped."""
    return sum(lane["num_kept"] + lane["num_cropped"] for lane in step.position["lanes"].values())


def test_long_documents_have_their_share_of_the_rows(tmp_path: Path) -> None:
    """Oracle: the words of the text. By lanes of equally many documents, they had a third of that."""
    long = [f"{n}:{' to and fro' * 200}" for n in range(80)]
    short = [f"{n}:{' fro and to' * 4}" for n in range(2600)]
    for name, some, size in (("long", long, 4), ("short", short, 100)):
        pq.write_table(pa.table({"text": some}), tmp_path / f"{name}.parquet", row_group_size=size)
    files = tuple(sorted(tmp_path.iterdir()))
    corpus = Corpus(
        name="mixed", text_column="text", train_files=files, validation_files=(), summary="own text"
    )
    steps = take(make_stream(corpus, packing="bestfit_split", rows=16, lanes=16, context=128), 60)
    read = TOKENIZER.decode(
        [token for step in steps for row in step.micro_batches for token in row[0].flatten()]
    )
    written = "".join(long + short)
    assert 0.8 < steps[-1].epoch < 1.2
    assert read.count("to and") / read.count("fro and") == pytest.approx(
        written.count("to and") / written.count("fro and"), rel=0.2
    )


@packings
def test_a_run_begun_with_lanes_of_equally_many_documents_goes_on_with_them(
    corpus: Corpus, packing: Packing
) -> None:
    """Such positions don't say how the row groups were dealt. Oracle: the run that was not stopped."""
    corpus = replace(corpus, summary="own text")
    begun = make_stream(corpus, packing=packing)
    begun._deal(by="documents")
    steps = take(begun, 20)
    assert "dealt" not in steps[9].position["identity"]
    for before in (9, 14):
        resumed = make_stream(corpus, packing=packing)
        resumed.load_position([steps[before].position])
        assert [*map(row_hashes, take(resumed, 5))] == [*map(row_hashes, steps[before + 1 : before + 6])]


@packings
@pytest.mark.parametrize("documents", [200, 50])
def test_epochs_count_the_tokens_placed_or_cropped_and_none_that_are_held(
    tmp_path: Path, packing: Packing, documents: int
) -> None:
    """Oracle: the tokens of the whole text, encoded anew. Each lane draws all of 50 documents at once."""
    corpus = make_corpus(tmp_path, documents=documents)
    steps = take(make_stream(corpus, packing=packing, buffer=64), 60)
    every = sum(map(len, TOKENIZER.encode_batch(texts(documents), bos=True)))
    epochs = [step.epoch for step in steps]
    assert epochs[8:] == pytest.approx([num_used(step) / every for step in steps[8:]], rel=0.15)


def test_the_mean_of_the_ranks_epochs_is_that_of_one_rank_and_a_resumed_run_counts_on(corpus: Corpus) -> None:
    """Oracle: one rank that was not stopped."""
    whole = take(make_stream(corpus), 60)
    ranks = [take(make_stream(corpus, rank=rank, world=4), 60)[-1].epoch for rank in range(4)]
    assert sum(ranks) / 4 == pytest.approx(whole[-1].epoch)
    resumed = make_stream(corpus)
    resumed.load_position([whole[29].position])
    assert take(resumed, 30)[-1].epoch == whole[-1].epoch


def test_a_step_holds_contiguous_inputs_and_their_next_tokens(corpus: Corpus) -> None:
    (step,) = take(make_stream(corpus, rank=1, world=2), 1)
    assert step.num_tokens == 8 * 24
    assert len(step.micro_batches) == 2
    for ids_BT, targets_BT in step.micro_batches:
        assert ids_BT.shape == targets_BT.shape == (2, 24)
        assert ids_BT.dtype == targets_BT.dtype == torch.int64
        assert ids_BT.is_contiguous()
        assert targets_BT.is_contiguous()
        assert torch.equal(ids_BT[:, 1:], targets_BT[:, :-1])
        assert (ids_BT[:, 0] == TOKENIZER.bos_id).all()


def test_every_epoch_has_every_document_once_in_another_order(corpus: Corpus) -> None:
    groups = [(shard, n) for shard in corpus.train_shards for n in range(len(shard.group_sizes))]
    lanes = [DocumentSequence(share, lane=n, seed=1) for n, share in enumerate(deal(groups, 4))]
    epochs = []
    for epoch in range(3):
        numbers = [range(epoch * lane.num_documents, (epoch + 1) * lane.num_documents) for lane in lanes]
        arrays = [lane.texts(some) for lane, some in zip(lanes, numbers, strict=True)]
        epochs.append([text for array in arrays for text in array.to_pylist()])
    assert all(sorted(epoch) == sorted(texts(200)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_lanes_share_the_text_evenly_whatever_the_order_of_group_sizes() -> None:
    """Shards of three whole row groups and a short last one, as files of equal size have them."""
    sizes = [(1024, 1024, 1024, 300 + n) for n in range(23)]
    shards = [
        Shard(path=Path(f"{n}"), text_column="text", group_sizes=some, group_bytes=some)
        for n, some in enumerate(sizes)
    ]
    groups = [(shard, n) for shard in shards for n in range(4)]
    shares = deal(groups, 16, by="bytes")
    assert deal(groups, 16, by="documents") == shares, "as many bytes as documents"
    documents = [sum(shard.group_sizes[n] for shard, n in share) for share in shares]
    assert max(documents) / min(documents) < 1.2
    dealt = [group for share in shares for group in share]
    assert len(dealt) == len(groups)
    assert {(shard.path, n) for shard, n in dealt} == {(shard.path, n) for shard, n in groups}


def test_a_number_names_one_document_however_it_is_asked_for(corpus: Corpus) -> None:
    groups = [(shard, n) for shard in corpus.train_shards for n in range(len(shard.group_sizes))]
    sequence = DocumentSequence(deal(groups, 4)[1], lane=1, seed=1)
    every = sequence.texts(range(120)).to_pylist()
    assert sequence.texts([119, 3, 60, 4, 61, 61]).to_pylist() == [every[n] for n in (119, 3, 60, 4, 61, 61)]
    assert sequence.texts(range(37, 90)).to_pylist() == every[37:90]


@pytest.mark.parametrize(
    ("lanes", "rows", "groups", "expected"),
    [
        (16, 512, 1000, 16),
        (16, 8, 1000, 8),
        (16, 24, 1000, 8),
        (16, 512, 6, 4),
        (16, 3, 9, 1),
        (12, 24, 99, 12),
    ],
)
def test_lanes_follow_the_step_and_the_data(lanes: int, rows: int, groups: int, expected: int) -> None:
    assert num_lanes(lanes, rows=rows, groups=groups) == expected


def test_the_buffer_is_a_small_part_of_a_lane_of_little_text(corpus: Corpus) -> None:
    """A lane has 48 documents or more; a twentieth of them is two."""
    assert make_stream(corpus, buffer=1000).buffer == 2


def test_ranks_that_do_not_divide_the_lanes_are_refused(corpus: Corpus) -> None:
    with pytest.raises(
        ValueError, match="3 ranks can't share 4 lanes of data evenly; allowed are 1, 2, 4 ranks"
    ):
        make_stream(corpus, world=3)


def test_data_of_fewer_row_groups_than_ranks_is_refused_with_what_helps(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"2 row groups of text, fewer than the 4 ranks; .*row_group_size=1024"
    ):
        make_stream(make_corpus(tmp_path, documents=9), world=4)


def test_a_micro_batch_that_does_not_divide_the_rows_is_refused(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match=r"\(3 rows\) must divide .* \(4\); allowed are 1, 2, 4"):
        make_stream(corpus, world=2, micro_batch=3)


@packings
@pytest.mark.parametrize("lacks", [("1",), ("1", "next"), ("3", "num_kept"), ("3", "documents")])
def test_a_position_that_lacks_a_part_is_refused_before_a_thread_misses_it(
    corpus: Corpus, packing: Packing, lacks: tuple[str, ...]
) -> None:
    position = json.loads(json.dumps(take(make_stream(corpus, packing=packing), 1)[0].position))
    *above, last = "lanes", *lacks
    node = position
    for key in above:
        node = node[key]
    node[f"not {last}"] = node.pop(last)
    with pytest.raises(ValueError, match="lacks part of a lane; delete its checkpoint"):
        make_stream(corpus, packing=packing).load_position([position])


def test_changed_settings_and_data_are_refused_on_resume(corpus: Corpus, tmp_path: Path) -> None:
    (step,) = take(make_stream(corpus), 1)
    with pytest.raises(ValueError, match="seed was 1, is 2, capacity was 25, is 33"):
        make_stream(corpus, seed=2, context=32).load_position([step.position])
    with pytest.raises(ValueError, match="data was"):
        make_stream(make_corpus(tmp_path, documents=190)).load_position([step.position])
    with pytest.raises(ValueError, match="format 9, this version reads 1"):
        make_stream(corpus).load_position([step.position | {"format": 9}])


def test_positions_of_some_ranks_or_of_two_steps_are_refused(corpus: Corpus) -> None:
    first, second = (take(make_stream(corpus, rank=rank, world=2), 2) for rank in (0, 1))
    with pytest.raises(ValueError, match="with 2 of 4 lanes"):
        make_stream(corpus).load_position([first[0].position])
    with pytest.raises(ValueError, match=r"got steps \[1, 2\]"):
        make_stream(corpus).load_position([first[0].position, second[1].position])


def test_a_fault_in_the_data_reaches_the_training_loop(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    stream = make_stream(corpus)
    corpus.train_files[0].write_bytes(b"overwritten")
    with pytest.raises(ValueError, match=r"a\.parquet: row group \d+ cannot be read"):
        take(stream, 100)


def data_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "nanolit-data"]


@pytest.mark.parametrize("threads", [1, 3, 16])
def test_rows_are_equal_on_any_number_of_threads(corpus: Corpus, threads: int) -> None:
    assert hashes([make_stream(corpus, threads=threads)], 20) == hashes([make_stream(corpus, threads=4)], 20)


def test_leaving_the_loop_ends_the_threads(corpus: Corpus) -> None:
    steps = iter(make_stream(corpus, threads=2))
    next(steps)
    assert len(data_threads()) == 3  # one makes steps of what two lanes each give
    del steps
    assert data_threads() == []


def test_items_arrive_in_order_until_the_fault_and_then_the_fault() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise KeyError("broken")

    stream = ahead(items(), depth=2)
    assert list(islice(stream, 5)) == [0, 1, 2, 3, 4]
    with pytest.raises(KeyError, match="broken"):
        next(stream)
    assert list(ahead(iter(range(9)), depth=2)) == list(range(9))


def test_the_thread_runs_a_bounded_number_of_items_ahead() -> None:
    made, waiting = 0, threading.Event()

    def items() -> Iterator[int]:
        nonlocal made
        for made in range(1, 100):
            if made == 6:
                waiting.set()
            yield made

    stream = ahead(items(), depth=3)
    assert next(stream) == 1
    assert not waiting.wait(timeout=0.2)  # one taken, three ready, one in hand: the sixth is not begun
    assert next(stream) == 2
    assert waiting.wait(timeout=5)
    stream.close()
    assert made < 9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_are_pinned_and_stay_whole_while_copies_are_queued(corpus: Corpus) -> None:
    expected = hashes([make_stream(corpus)], 50)
    copies = []
    for step in islice(make_stream(corpus), 50):
        assert all(ids_BT.is_pinned() for ids_BT, _ in step.micro_batches)
        copies.append([[x_BT.to("cuda", non_blocking=True) for x_BT in pair] for pair in step.micro_batches])
    torch.cuda.synchronize()
    for pairs, rows in zip(copies, expected, strict=True):
        micro_batches = [(ids_BT.cpu(), targets_BT.cpu()) for ids_BT, targets_BT in pairs]
        step = Step(micro_batches=micro_batches, num_tokens=0, position={}, epoch=0, cropped_fraction=0)
        assert row_hashes(step) == rows
