"""A dossier made of a planted incident: who can check what, what each edition hides, and every change that is found."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import msgspec
import pytest
import stix2
from case_utils import case_validate

from benchmarks.dossier import edition, flips, part_of, places, scene
from trainwarden.checks import Check, Failed, NotChecked, Passed
from trainwarden.cli import main
from trainwarden.dossier.commitments import commitment, item_root, register_root
from trainwarden.dossier.container import check_structure, pack, unpack
from trainwarden.dossier.making import Made, write
from trainwarden.dossier.nouns import Audience, Disclosure, Shown
from trainwarden.dossier.pages import REGISTER
from trainwarden.dossier.signing import decode_register, encode_register, members_of, signed
from trainwarden.dossier.verifying import verify_files, verify_zip
from trainwarden.errors import DossierTampered
from trainwarden.keys import SigningKey
from trainwarden.log.cosignature import cosign
from trainwarden.log.policy import k_of
from trainwarden.log.vkeys import COSIGNATURE, VerifierKey

_DATE = {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$"}
_PARTIES = {"type": "array", "items": {"type": "string", "minLength": 3, "maxLength": 199}}
ATLAS = {  # as mitre-atlas/atlas-data publishes it in dist/schemas, written again
    "type": "object",
    "required": [
        "object-type", "name", "summary", "incident-date", "incident-date-granularity", "procedure", "reported-by",
    ],
    "properties": {
        "object-type": {"const": "case-study"},
        "id": {"type": "string", "pattern": r"^(?:[A-Z]+\d*\.)+CS\d{4}$"},
        "name": {"type": "string"},
        "summary": {"type": "string"},
        "incident-date": _DATE,
        "incident-date-granularity": {"enum": ["YEAR", "MONTH", "DATE"]},
        "reported-by": {"type": "string"},
        "procedure": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["tactic", "technique", "description"],
                "properties": {
                    "tactic": {"type": "string", "pattern": r"^(?:[A-Z]+\d*\.)+TA\d{4}$"},
                    "technique": {"type": "string", "pattern": r"^(?:[A-Z]+\d*\.)+T\d{4}(?:\.\d{3})?$"},
                    "description": {"type": "string"},
                },
            },
        },
        "references": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["title", "url"],
                "properties": {"title": {"type": ["string", "null"]}, "url": {"type": ["string", "null"]}},
            },
        },
    },
}  # fmt: skip
AIID = {  # its form's lengths, and what its server's `Submission` must have; url and authors wait for a human
    "type": "object",
    "required": [
        "authors",
        "date_downloaded",
        "date_modified",
        "date_published",
        "date_submitted",
        "description",
        "image_url",
        "incident_date",
        "language",
        "source_domain",
        "submitters",
        "tags",
        "text",
        "title",
        "url",
    ],
    "properties": {
        "title": {"type": "string", "minLength": 6, "maxLength": 500},
        "incident_title": {"type": "string", "minLength": 6, "maxLength": 500},
        "description": {"type": "string", "minLength": 3, "maxLength": 500},
        "text": {"type": "string", "minLength": 80, "maxLength": 50_000},
        **dict.fromkeys(("date_published", "date_downloaded", "date_submitted", "incident_date"), _DATE),
        **dict.fromkeys(("authors", "submitters", "deployers", "developers", "harmed_parties"), _PARTIES),
        "implicated_systems": _PARTIES,
        "incident_ids": {"type": "array", "items": {"type": "integer", "minimum": 1}},
        "tags": {"type": "array", "items": {"type": "string"}},
        "editor_notes": {"type": "string"},
    },
}
NAMES = (r"\bomar\b", r"\bvera\b", r"\bipsen\b", r"\bnoor\b", r"node3\b", r"\b10\.1\.0\.")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dossier")


@pytest.fixture(scope="module")
def editions(place: Path) -> Iterator[dict[Audience, Made]]:
    """Every edition, and the organisation's once more."""
    with scene(place) as (store, incident, by):
        made = {audience: edition(store, incident, by, audience) for audience in Audience}
        again = edition(store, incident, by, Audience.ORGANISATION)
        assert pack(again.files) == pack(made[Audience.ORGANISATION].files), "the same store gives the same bytes"
        yield made


def results(checks: list[Check]) -> dict[str, str]:
    return {c.name: type(c.result).__name__ for c in checks}


def reasons(checks: list[Check]) -> str:
    return " ".join(c.result.reason for c in checks if isinstance(c.result, Failed))


def resigned(made: Made, place: Path, **files: bytes) -> dict[str, bytes]:
    """The edition with other files, signed again by the maker's own key: a lying maker."""
    changed = {n: d for n, d in {**made.files, **files}.items() if n not in ("manifest.json", "manifest.sig")}
    manifest = msgspec.structs.replace(made.manifest, members=members_of(changed))
    return {**changed, **signed(manifest, SigningKey.load(place / "key"))}


def changed_item(made: Made, id: str, **fields: object) -> bytes:
    """The register with other values of an item's fields, under their old salts."""
    items = list(decode_register(made.files[REGISTER]))
    at = next(n for n, i in enumerate(items) if i.id == id)
    shown = dict(items[at].shown)
    for name, value in fields.items():
        key = name.replace("__", ".")
        shown[key] = Disclosure(salt=shown[key].salt, value=value)
    items[at] = msgspec.structs.replace(items[at], shown=shown)
    return encode_register(tuple(items))


# --------------------------------------------------------------------------- whole and true


def test_the_organisations_edition_is_checked_in_full_with_nothing_but_the_key(editions: dict[Audience, Made]) -> None:
    made = editions[Audience.ORGANISATION]
    manifest, checks = verify_zip(pack(made.files), made.manifest.key)
    assert manifest == made.manifest
    assert {n for n, r in results(checks).items() if r != "Passed"} == {"witnesses"}
    assert results(verify_files(made.files)[1])["key"] == "NotChecked"  # the key that it names itself proves nothing


def test_every_edition_is_under_one_root_and_hidden_is_never_a_pass(editions: dict[Audience, Made]) -> None:
    assert len({m.manifest.register for m in editions.values()}) == 1
    for audience, made in editions.items():
        checks = results(verify_zip(pack(made.files), made.manifest.key)[1])
        assert "Failed" not in checks.values()
        assert checks["register"] == checks["custody"] == checks["entries"] == checks["pages"] == "Passed"
        assert (checks["hidden"] == "Passed") == (audience is Audience.ORGANISATION)


@pytest.mark.parametrize("audience", [Audience.INDUSTRY, Audience.PUBLIC])
def test_no_name_is_anywhere_in_an_edition_that_hides_names(audience: Audience, editions: dict[Audience, Made]) -> None:
    seen = b"\n".join(editions[audience].files.values()).decode().lower()
    whole = b"\n".join(editions[Audience.ORGANISATION].files.values()).decode("utf-8", "replace").lower()
    assert [n for n in NAMES if re.search(n, seen)] == []
    assert [n for n in NAMES if not re.search(n, whole)] == []
    assert ("/shared/env/" in seen) == (audience is Audience.INDUSTRY)


def test_a_university_sees_the_account_that_the_conclusion_is_about_and_no_other(
    editions: dict[Audience, Made],
) -> None:
    page = editions[Audience.UNIVERSITY].files["dossier.html"].decode()
    assert "omar" in page
    assert [n for n in NAMES[1:] if re.search(n, page)] == []


def test_an_opened_edition_fits_the_commitments_of_a_hidden_one(editions: dict[Audience, Made]) -> None:
    whole = {i.id: i for i in decode_register(editions[Audience.ORGANISATION].files[REGISTER])}
    hidden = 0
    for item in decode_register(editions[Audience.PUBLIC].files[REGISTER]):
        assert item_root(item) == item_root(whole[item.id])
        for name, told in item.hidden.items():
            if name in whole[item.id].shown:
                assert commitment(name, whole[item.id].shown[name]).hex() == told
                hidden += 1
    assert hidden > 50


def test_entries_that_are_hidden_in_part_show_no_proof_to_guess_against(editions: dict[Audience, Made]) -> None:
    for item in decode_register(editions[Audience.PUBLIC].files[REGISTER]):
        if item.kind == "entry":
            assert (item.proof is None) == ("leaf" in item.hidden)
            assert "leaf" in item.shown or "leaf" in item.hidden
    verdicts = [i for i in decode_register(editions[Audience.PUBLIC].files[REGISTER]) if i.kind == "entry" and i.proof]
    assert any(i.shown["entry.type"].value == "diverged" for i in verdicts)  # what is proved is proved to everybody


def test_every_figure_and_row_links_to_evidence_that_is_there(editions: dict[Audience, Made]) -> None:
    page = editions[Audience.ORGANISATION].files["dossier.html"].decode()
    targets, anchors = set(re.findall(r'href="#([^"]+)"', page)), re.findall(r'<(?:tr|h2) id="([^"]+)"', page)
    assert targets <= set(anchors)
    assert len(anchors) == len(set(anchors))
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    assert "<script" not in page
    ours = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    assert [w for w in ("guilty", "culprit", "perpetrator", "offender") if w in ours.lower()] == []


# --------------------------------------------------------------------------- tampering


def test_the_investigator_log_says_of_every_entry_what_it_says_with_times_as_times(
    editions: dict[Audience, Made],
) -> None:
    page = editions[Audience.ORGANISATION].files["dossier.html"].decode()
    log = page[page.rindex("Investigator log") :].partition("</section>")[0]
    told = re.findall(r'<td[^>]*data-label="what it says">(.*?)</td>', log)
    assert len(told) > 3
    assert all(told)
    assert not re.search(r"\d(,\d{3}){5}", log)  # nanoseconds


def test_any_flipped_bit_is_found_and_its_member_named(editions: dict[Audience, Made]) -> None:
    made = editions[Audience.PUBLIC]
    offsets = places(made, every=20_000)[::6]
    parts = {part_of(made.files, at) for at in offsets}
    assert parts >= {*made.files, "zip file"}
    found, missed = flips(made, offsets)
    assert (found, missed) == (len(offsets), [])


def test_members_added_removed_and_changed_in_a_folder_are_named(
    editions: dict[Audience, Made], tmp_path: Path
) -> None:
    made = editions[Audience.INDUSTRY]
    folder, _ = write(made, tmp_path / "d")
    key = ("--key", made.manifest.key)
    assert main(["verify", str(folder), *key]) == 2
    (folder / "exports" / "stix.json").write_bytes(b"{}")
    (folder / "planted.txt").write_bytes(b"")
    (folder / "notices" / "industry.md").unlink()
    _, checks = verify_files({str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()})
    said = reasons(checks)
    assert "exports/stix.json was changed" in said
    assert "planted.txt is not in the manifest" in said
    assert "notices/industry.md is missing" in said
    assert results(checks)["register"] == "NotChecked"
    assert main(["verify", str(folder), *key]) == 1


def test_a_dossier_of_another_key_is_refused(editions: dict[Audience, Made], tmp_path: Path) -> None:
    made = editions[Audience.PUBLIC]
    assert "expected key" in reasons(verify_zip(pack(made.files), SigningKey(bytes(32)).public)[1])


def test_a_maker_who_signs_again_cannot_change_a_field_under_the_root(
    editions: dict[Audience, Made], place: Path
) -> None:
    made = editions[Audience.ORGANISATION]
    files = resigned(made, place, **{REGISTER: changed_item(made, "conclusion-1", grade="strongly supported!")})
    assert "items give the root" in reasons(verify_files(files, made.manifest.key)[1])


def test_a_maker_who_signs_again_cannot_let_the_page_say_something_else(
    editions: dict[Audience, Made], place: Path
) -> None:
    made = editions[Audience.ORGANISATION]
    page = made.files["dossier.html"].replace(b"Nothing here says that a person did anything", b"It was P1")
    files = resigned(made, place, **{"dossier.html": page})
    assert "dossier.html does not say what the register says" in reasons(verify_files(files, made.manifest.key)[1])


def test_a_root_that_the_log_of_custody_does_not_bind_is_refused(editions: dict[Audience, Made], place: Path) -> None:
    made = editions[Audience.ORGANISATION]
    register = changed_item(made, "conclusion-1", grade="strongly supported!")
    root = register_root(decode_register(register))
    lying = msgspec.structs.replace(made, manifest=msgspec.structs.replace(made.manifest, register=root))
    files = resigned(lying, place, **{REGISTER: register})
    assert "binds the root" in reasons(verify_files(files, made.manifest.key)[1])


def test_fields_that_are_not_those_of_the_entry_are_refused(editions: dict[Audience, Made], place: Path) -> None:
    made = editions[Audience.ORGANISATION]
    items = decode_register(made.files[REGISTER])
    finding = next(i for i in items if i.kind == "entry" and i.shown["entry.type"].value == "finding")
    lie = {REGISTER: changed_item(made, finding.id, entry__seen="nothing")}
    assert f"the fields of {finding.id} are not those" in reasons(verify_files(resigned(made, place, **lie))[1])
    moved = msgspec.structs.replace(finding, proof=msgspec.structs.replace(finding.proof, index=1))
    register = encode_register(tuple(moved if i.id == finding.id else i for i in items))
    assert f"{finding.id}: leaf 1 is not in the tree" in reasons(
        verify_files(resigned(made, place, **{REGISTER: register}))[1]
    )


def test_a_record_that_is_not_what_was_taken_in_is_refused(editions: dict[Audience, Made], place: Path) -> None:
    made = editions[Audience.ORGANISATION]
    path = next(p for p in made.files if p.startswith("records/"))
    files = resigned(made, place, **{path: made.files[path] + b"\n"})
    assert f"{path} is not what was taken in" in reasons(verify_files(files, made.manifest.key)[1])


def test_an_item_that_names_fewer_fields_than_it_has_is_refused() -> None:
    item = Shown(id="a-1", kind="a", names=("x",), shown={"x": Disclosure(salt="00", value=1)}, hidden={"y": "00" * 32})
    with pytest.raises(DossierTampered, match="its fields are not"):
        item_root(item)
    with pytest.raises(DossierTampered, match="malformed"):
        item_root(msgspec.structs.replace(item, names=("x", "y"), hidden={"y": "zz"}))


def test_a_zip_file_of_another_make_is_refused_byte_for_byte(tmp_path: Path) -> None:
    import zipfile

    files = {"a": b"1", "b/c": b"22"}
    data = pack(files)
    assert unpack(data) == files
    with zipfile.ZipFile(_written(tmp_path / "ours.zip", data)) as others:  # any reader of zip files reads it
        assert {n: others.read(n) for n in others.namelist()} == files
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as out:
        out.writestr("a", b"1")
    with pytest.raises(DossierTampered, match="of the zip file"):
        check_structure(other.read_bytes(), unpack(other.read_bytes()))
    for junk in (data + b"x", b"x" + data, data[:-1]):
        with pytest.raises(DossierTampered):
            check_structure(junk, unpack(junk))
    assert isinstance(verify_zip(b"PK")[1][0].result, Failed)


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# --------------------------------------------------------------------------- witnesses, verbs, exports


def test_witnesses_cosign_the_head_that_the_dossier_stands_on(editions: dict[Audience, Made], place: Path) -> None:
    made, witness = editions[Audience.PUBLIC], SigningKey(b"w" * 32)
    vkey = VerifierKey("w.example", witness.public, COSIGNATURE)
    head = next(h for h in made.manifest.logs if h.name == "custody")
    text = head.note.partition("\n\n")[0] + "\n"
    logs = tuple(
        msgspec.structs.replace(h, cosigned=h.note + cosign(text, "w.example", witness, 1_800_000_000))
        if h.name == "custody"
        else h
        for h in made.manifest.logs
    )
    said = msgspec.structs.replace(made, manifest=msgspec.structs.replace(made.manifest, logs=logs))
    policy = k_of([vkey], 1)
    checks = verify_files(resigned(said, place), made.manifest.key, policy)[1]
    assert isinstance(next(c.result for c in checks if c.name == "witnesses"), Passed)
    checks = verify_files(made.files, made.manifest.key, policy)[1]
    assert "0 of 1 cosignatures" in reasons(checks)
    checks = verify_files(made.files, made.manifest.key)[1]
    assert isinstance(next(c.result for c in checks if c.name == "witnesses"), NotChecked)


def test_stix_of_every_edition_is_valid_and_names_no_threat_actor(editions: dict[Audience, Made]) -> None:
    for made in editions.values():
        text = made.files["exports/stix.json"].decode()
        bundle = stix2.parse(text)
        kinds = {o["type"] for o in bundle["objects"]}
        assert {"incident", "report", "attack-pattern", "file", "user-account", "observed-data"} <= kinds
        assert not kinds & {"threat-actor", "intrusion-set", "campaign"}
        assert [o["name"] for o in bundle["objects"] if o["type"] == "identity"] == ["TrainWarden"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:case_utils", "ignore::DeprecationWarning:importlib")
def test_case_conforms_to_the_shapes_of_the_ontology(editions: dict[Audience, Made], tmp_path: Path) -> None:
    def found(graph: bytes) -> case_validate.ValidationResult:
        path = _written(tmp_path / "case.jsonld", graph)
        return case_validate.validate(str(path), case_version="case-1.5.0", allow_infos=True, inference="none")

    for audience in (Audience.ORGANISATION, Audience.PUBLIC):
        told = found(editions[audience].files["exports/case.jsonld"])
        assert told.conforms, told.text
    made = json.loads(editions[Audience.PUBLIC].files["exports/case.jsonld"])
    file = next(n for n in made["@graph"] if n["@type"] == "uco-observable:File")
    del file["uco-core:hasFacet"][0]["@id"]  # a node without a name
    assert not found(json.dumps({**made, "@graph": [file]}).encode()).conforms


@pytest.mark.parametrize("audience", [Audience.ORGANISATION, Audience.PUBLIC])
def test_what_a_human_completes_has_the_form_that_its_readers_publish(
    audience: Audience, editions: dict[Audience, Made]
) -> None:
    files = editions[audience].files
    jsonschema.validate(json.loads(files["exports/atlas-case-study.yaml"]), ATLAS, cls=jsonschema.Draft7Validator)
    jsonschema.validate(json.loads(files["exports/aiid.json"]), AIID, cls=jsonschema.Draft7Validator)
    study = json.loads(files["exports/atlas-case-study.yaml"])
    step = {**study["procedure"][0], "technique": "T1489"}
    with pytest.raises(jsonschema.ValidationError):  # an id of ATT&CK is none of ATLAS
        jsonschema.validate({**study, "procedure": [step]}, ATLAS, cls=jsonschema.Draft7Validator)


def test_the_other_exports_have_the_fields_that_their_readers_want(editions: dict[Audience, Made]) -> None:
    files = editions[Audience.ORGANISATION].files
    rows = [json.loads(line) for line in files["exports/timesketch.jsonl"].splitlines()]
    assert len(rows) > 20
    assert all({"message", "datetime", "timestamp_desc"} <= r.keys() and r["message"] for r in rows)
    assert [r["timestamp"] for r in rows] == sorted(r["timestamp"] for r in rows)
    study = json.loads(files["exports/atlas-case-study.yaml"])
    assert study["object-type"] == "case-study"
    assert {step["technique"] for step in study["procedure"]} == {"AML.T0010.001"}
    assert "T1489 Service stop" in study["summary"]
    incident = json.loads(files["exports/aiid.json"])
    assert incident["title"].startswith("Alleged: ")
    assert incident["harmed_parties"] == []
    graph = json.loads(files["exports/case.jsonld"])["@graph"]
    ids = {node["@id"] for node in graph}
    assert {o["@id"] for o in graph[0]["uco-core:object"]} < ids
    assert {a["uco-action:object"]["@id"] if "@id" in a.get("uco-action:object", {}) else "" for a in graph} <= {
        *ids,
        "",
    }


def test_notices_are_drafts_that_say_alleged_and_name_nobody(editions: dict[Audience, Made]) -> None:
    for audience, made in editions.items():
        drafts = {p: d.decode() for p, d in made.files.items() if p.startswith("notices/")}
        assert set(drafts) == {f"notices/{audience}.md"}
        for text in drafts.values():
            assert text.startswith("DRAFT, NOT SENT")
            assert "alleged" in text
            assert "An account is not a person" in text


def test_from_the_command_line_with_words_to_hide(
    place: Path, editions: dict[Audience, Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("TRAINWARDEN_KEY", str(place / "key"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reply.txt").write_text("We asked the respondent about Project Heron, and were told nothing.\n")
    call = ["dossier", "last", "--store", str(place / "store"), "--rebuttal", "reply.txt", "--no-pdf", "--json"]
    assert main([*call, "-o", "public", "--audience", "public", "--hide", "Project Heron"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["absent"]) == {"records/", "kit/", "dossier.pdf"}
    page = (tmp_path / "public" / "dossier.html").read_text()
    assert "word-1, and were told nothing" in page
    assert "Heron" not in page
    monkeypatch.setenv("TRAINWARDEN_KEY", str(tmp_path / "no-key"))  # on another machine
    assert main(["verify", told["zip"], "--key", told["key"], "--json"]) == 2
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert {c["name"] for c in checks if c["result"]["type"] == "failed"} == set()
    assert main(["verify", told["zip"], "--deep"]) == 3
    os.truncate(told["zip"], os.path.getsize(told["zip"]) - 5)
    assert main(["verify", told["zip"], "--key", told["key"]]) == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    monkeypatch.setenv("TRAINWARDEN_KEY", str(place / "key"))
    assert main([*call, "-o", "other"]) == 3
    assert (tmp_path / "other" / "mine.txt").exists()
