"""Tables that would be misread without a word: each is refused with its line, or read right."""

from __future__ import annotations

import csv
import io

import langcodes
import pytest
import toys

from fedsim.errors import FedsimError
from fedsim.scenario.clients import ClientSettings
from fedsim.scenario.corpus import CorpusSettings
from fedsim.speech.corpus import open_clients
from fedsim.speech.genders import gender_of_word
from fedsim.speech.languages import CODES, language_code
from fedsim.speech.readers import read_recordings
from fedsim.speech.summary import corpus_lines

HEADER = "file_name,speaker,text"


def table(tmp_path, *rows, name="metadata.csv"):
    (tmp_path / name).write_bytes("".join(row + "\n" for row in rows).encode())
    return CorpusSettings(path=str(tmp_path), group_by="speaker")


def texts(corpus):
    return [u.text for u in read_recordings(corpus).utterances]


def eight(doubtful, closing=None):
    rows = [f"{i}.wav,ann,text {i}" for i in range(8)]
    rows[1] = f"1.wav,ann,{doubtful}"
    if closing is not None:
        rows[5] = f"5.wav,ann,{closing}"
    return rows


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        # A quotation mark that nobody closes.
        (eight('"Hello, he said'), r"metadata.csv:3: .*\(unexpected end of data\)"),
        # One that the mark of another row closes: 8 rows would be 4, read loosely.
        (eight('"Hello, he said', 'so she said "'), r"metadata.csv:3: .* not closed before line 4"),
        (eight('"Hello', '"'), r"metadata.csv:3: .* looks like a row of its own"),
        (eight('"Hello', '"there" she'), r"metadata.csv:3: .*','|metadata.csv:3: the row cannot"),
        # A comma in a text without quotation marks: the rest of the text would be dropped.
        (eight("well, yes"), r"metadata.csv:3: the row has 4 cells and the header 3; put a text"),
        (["file_name;speaker;text", "1.wav;ann;yes"], r"metadata.csv:1: .* by semicolons"),
        (["file_name\tspeaker\ttext", "1.wav\tann\tyes"], r"metadata.csv:1: .* by tabs"),
        (["file_name,text,text", "1.wav,a,b"], r"metadata.csv:1: two columns are called 'text'"),
    ],
)
def test_a_doubtful_row_is_named(tmp_path, rows, sentence):
    header = [] if rows[0].startswith("file_name") else [HEADER]
    with pytest.raises(FedsimError, match=sentence):
        texts(table(tmp_path, *header, *rows))


def test_what_csv_means_by_quotation_marks_is_read(tmp_path):
    """What Python's own writer makes of hard texts comes back as it was."""
    said = ['"Hello', 'he said "two"', "a, b", "one\ntwo", "one\r\ntwo, and\nthree", '"', "x.wav"]
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerows([HEADER.split(","), *([f"{i}.wav", "ann", t] for i, t in enumerate(said))])
    (tmp_path / "metadata.csv").write_bytes(stream.getvalue().encode())
    assert texts(CorpusSettings(path=str(tmp_path), group_by="speaker")) == said


def test_jsonl_has_no_such_trouble(tmp_path):
    rows = ['{"file_name": "1.wav", "speaker": "ann", "text": "\\"Hello"}']
    assert texts(table(tmp_path, *rows, name="metadata.jsonl")) == ['"Hello']
    with pytest.raises(FedsimError, match=r"metadata.jsonl:1: the line is not JSON"):
        texts(table(tmp_path, rows[0][:-1], name="metadata.jsonl"))


def test_a_list_of_speakers_with_an_open_quotation_mark(tmp_path):
    """The siblings of a corpus' table are read by the same function."""
    (tmp_path / "who.csv").write_text('speaker,gender\nann,"F\nbob,M\n')
    corpus = table(tmp_path, HEADER, "1.wav,ann,yes")
    with pytest.raises(FedsimError, match=r"who.csv:2: the row cannot be read as CSV"):
        open_clients(
            corpus.model_copy(update={"speakers": str(tmp_path / "who.csv")}), ClientSettings(), 0
        )


def said_of(corpus, deep=False):
    found = open_clients(corpus, ClientSettings(), 0).found
    return list(corpus_lines(corpus, found, deep=deep))


def test_recordings_and_rows_are_counted_against_each_other(tmp_path):
    for i in range(4):
        toys.write_wav(tmp_path / f"{i}.wav", toys.clip(0.5, i))
    (tmp_path / ".hidden.wav").write_bytes(b"")
    corpus = table(tmp_path, HEADER, "0.wav,ann,a", "1.wav,bob,b", "gone.wav,bob,c")
    first, *rest = said_of(corpus)
    assert first.startswith(f"corpus: folder (found by auto) at {tmp_path}: 3 clips, 2 speakers, ")
    assert rest == [
        f"corpus: 1 of 3 named recordings are not there, the first is {tmp_path}/gone.wav",
        f"corpus: 2 of 4 recordings in {tmp_path} belong to no row, the first is 2.wav",
    ]
    assert "0.00028 hours (1.0 s)" in said_of(corpus, deep=True)[0]


def test_words_for_genders():
    for word in ("male_masculine", "Male", "M", "male", "m", " man ", "MALE"):
        assert gender_of_word(word) == "male"
    for word in ("female_feminine", "Female", "F", "female", "f", "Woman", "FEMALE"):
        assert gender_of_word(word) == "female"
    for word in ("", " ", None, "unknown", "N/A", "do_not_wish_to_say"):
        assert gender_of_word(word) is None
    assert gender_of_word("non-binary") == gender_of_word("OTHER") == "other"
    assert gender_of_word(" femail ") == "femail"


@pytest.fixture
def genders(tmp_path):
    words = ("male_masculine", "Male", "M", "male", "F", "other", "", "femail", "femail", "3")
    rows = [f"{i}.wav,ann,{word},hi" for i, word in enumerate(words)]
    return table(tmp_path, "file_name,speaker,gender,text", *rows)


def test_unknown_words_are_listed(genders):
    assert any("count as none: '3' (1), 'femail' (2)" in line for line in said_of(genders))
    by_gender = genders.model_copy(update={"group_by": "gender"})
    with pytest.raises(FedsimError, match=r"no genders, .*: '3' \(1\), 'femail' \(2\), .* 7.wav"):
        open_clients(by_gender, ClientSettings(), 0)


def test_four_words_are_one_client(genders, tmp_path):
    content = (tmp_path / "metadata.csv").read_text().replace("femail", "").replace(",3,", ",,")
    (tmp_path / "metadata.csv").write_text(content)
    corpus = genders.model_copy(update={"group_by": "gender"})
    found = open_clients(corpus, ClientSettings(), 0)
    assert {key: len(c.test) for key, c in found.items()} == {"female": 1, "male": 4}
    assert "corpus: 5 of 10 clips without a gender belong to no client" in said_of(corpus)


@pytest.mark.parametrize(
    ("word", "code"),
    [
        *(("nb_no", "no"), ("cmn_hans_cn", "zh"), ("es_419", "es"), ("zh-CN", "zh")),
        *(("pt-BR", "pt"), ("en_us", "en"), ("EN-GB", "en"), ("yue_hant_hk", "yue"), ("de", "de")),
        *(("German", "de"), ("haitian creole", "ht"), ("fil_ph", "tl"), ("jv_id", "jw")),
        *(("sv-SE", "sv"), ("eng", "en"), ("ga-IE", "ga"), ("ckb_iq", "ckb"), ("nn-NO", "nn")),
        *(("Klingon", "Klingon"), ("xx", "xx"), ("is_it_good", "is_it_good"), (" it ", "it")),
        *(("", None), (None, None)),
    ],
)
def test_what_corpora_call_a_language(word, code):
    assert language_code(word) == code


def test_the_table_is_whispers():
    from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

    assert set(CODES.values()) == set(LANGUAGES)
    assert {word: CODES.get(word) for word in TO_LANGUAGE_CODE} == TO_LANGUAGE_CODE


def test_other_codes_agree_with_the_standard():
    """By langcodes, which has CLDR's tables; Whisper writes jw for jv, and tl for fil."""
    own = {"jw": "jv", "tl": "fil"}
    for word, code in CODES.items():
        if len(word) in (2, 3) and word not in (
            "scc",
            "scr",
            "nb",
            "nob",
            "nn",
            "nno",
            "jw",
            "pbt",
        ):
            standard = langcodes.standardize_tag(word, macro=True)
            assert standard in (own.get(code, code), code), word


def test_languages_that_were_renamed_are_reported(tmp_path):
    rows = ["1.wav,nb_no,a", "2.wav,es_419,b", "3.wav,de,c", "4.wav,Spanish,d"]
    corpus = table(tmp_path, "file_name,language,text", *rows)
    corpus = corpus.model_copy(update={"group_by": "language"})
    assert list(open_clients(corpus, ClientSettings(), 0)) == ["de", "es", "no"]
    assert any("Spanish as es, es_419 as es, nb_no as no" in line for line in said_of(corpus))
