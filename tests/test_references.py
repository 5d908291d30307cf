"""What texts name: models and benchmarks, on the disk or on the Hub."""

import pytest

from hpt import InputError
from hpt.references import Reference, check_names, parse_model


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("outputs/robust", Reference("outputs/robust", "outputs/robust", named=False)),
        ("robust=outputs/robust", Reference("robust", "outputs/robust")),
        ("me/clip@v2", Reference("me/clip@v2", "me/clip", "v2", named=False)),
        ("mine=me/clip@refs/pr/1", Reference("mine", "me/clip", "refs/pr/1")),
        ("clip=", Reference("clip", "")),
        ("o/birds:split=val", Reference("o/birds", "o/birds", None, {"split": "val"}, named=False)),
        ("b=o/birds@v2:split=val", Reference("b", "o/birds", "v2", {"split": "val"})),
        (
            "b=o/birds:template=a {}: a, bird=b,class_names=/data/birds.txt",
            Reference("b", "o/birds", None, {"template": "a {}: a, bird=b", "class_names": "/data/birds.txt"}),
        ),
        ("vit: ours=me/clip", Reference("vit: ours", "me/clip")),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_a_text_is_taken_apart_and_given_back(text, expected):
    reference = Reference.parse(text)
    assert reference == expected and str(reference) == text
    assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize("name", ["run@2", "lr=0.1", "set:split=val", "a=b@c:d=e"])
def test_what_is_on_the_disk_is_a_path_as_it_stands(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert Reference.parse(name).source != name
    (tmp_path / name).mkdir()
    for path in (name, f"./{name}", str(tmp_path / name)):
        assert Reference.parse(path) == Reference(path, path, named=False)
        assert Reference.parse(f"mine={path}") == Reference("mine", path)
        assert Reference.parse(f"mine={path}").without_local_paths() == f"mine=PATH/{name}"
    if ":" not in name:  # else there are two ways to read it
        assert Reference.parse(f"mine={name}:split=val") == Reference("mine", name, None, {"split": "val"})


@pytest.mark.parametrize("text", ["~/clip", "c=~/clip", "c=~/set:split=val,class_names=~/names.txt", "c=~/new@v2"])
def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch, text):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "clip").mkdir()
    written_out = text.replace("~", str(tmp_path))
    assert Reference.parse(text) == Reference.parse(written_out) and str(Reference.parse(text)) == written_out
    assert parse_model("c=~/clip").source == Reference("c").at("~/clip").source == str(tmp_path / "clip")


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("/data/cifar10", "PATH/cifar10"),
        ("cifar10=/data/copy", "cifar10=PATH/copy"),
        ("~/models/clip", "PATH/clip"),
        ("../clip", "PATH/clip"),
        ("here/clip", "PATH/clip"),
        ("/home/me@work/clip", "PATH/clip"),
        ("local-dir:/home/me/clip", "PATH/clip"),
        ("local-dir:here/clip", "PATH/clip"),
        ("clip=clip", "clip=clip"),
        ("here=here", "here=PATH/here"),
        ("b=/data/b:split=fit,class_names=/data/birds.txt", "b=PATH/b:split=fit,class_names=PATH/birds.txt"),
        ("o/birds@v2:class_names=here/names.txt", "o/birds@v2:class_names=PATH/names.txt"),
        ("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch32"),
    ],
)
def test_local_paths_are_left_out_for_others(tmp_path, monkeypatch, text, public):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "clip").mkdir(parents=True)
    (tmp_path / "here" / "names.txt").touch()
    assert Reference.parse(text).without_local_paths() == public


def test_a_record_has_no_place():
    record = Reference("cifar10", settings={"template": "a {}"})
    assert str(record) == record.without_local_paths() == "cifar10:template=a {}" and record.place is None
    assert record.at("uoft-cs/cifar10@v2").place == "uoft-cs/cifar10@v2"
    assert record.at("uoft-cs/cifar10@v2").source == "uoft-cs/cifar10"


def test_references_can_be_counted():
    assert len({Reference.parse(text) for text in ("a=b", "a=b", "o/b:split=val")}) == 2


def test_a_model_has_no_settings():
    assert parse_model("mine=me/clip@v2") == Reference.parse("mine=me/clip@v2")
    with pytest.raises(InputError, match="'me/clip:split=val' sets 'split', but a model has no settings"):
        parse_model("me/clip:split=val")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ("split=val", "sets 'split', but of a model only image_size can be set, and of one that is converted base, "),
        ("image_size=big", "sets image_size to 'big', but must say a number of pixels"),
        ("image_size=-8", "sets image_size to '-8', but must say a number of pixels"),
        ("image_size=0", "sets image_size to '0', but must say a number of pixels"),
        ("image_size=", "sets image_size to '', but must say a number of pixels"),
    ],
)
def test_a_model_that_will_be_loaded_has_an_input_size(settings, line):
    model = parse_model("mine=me/clip@v2:image_size=336", loaded=True)
    assert (model.name, model.place, model.settings) == ("mine", "me/clip@v2", {"image_size": "336"})
    with pytest.raises(InputError, match=line):
        parse_model(f"me/clip:{settings}", loaded=True)


def test_two_of_one_name_are_refused():
    check_names(model.name for model in map(parse_model, ("a=x", "b=x", "x")))
    with pytest.raises(InputError, match="'a' is given twice: rows of the two couldn't be told apart"):
        check_names(model.name for model in map(parse_model, ("a=x", "a=y")))
