"""The official client asks a served model "m" for answers of a given form: python structured_client.py BASE_URL TOKEN

The oracle is pydantic, by which the client itself makes schemas and reads answers, and Python's json and re."""

import json
import re
import sys
from typing import Literal, Optional

import openai
from pydantic import BaseModel, Field

client = openai.OpenAI(base_url=sys.argv[1], api_key=sys.argv[2], max_retries=0)


class Beast(BaseModel):
    kind: Literal["cow", "goat"]
    legs: int = Field(ge=0, le=4)
    sound: Optional[Literal["moo", "meh"]]


class Herd(BaseModel):
    beasts: list[Beast] = Field(max_length=3)
    grazing: bool


def ask(seed, **more):
    return dict(model="m", messages=[{"role": "user", "content": f"{seed}"}], seed=seed, max_completion_tokens=220, **more)


filled = 0
for seed in range(8):
    try:
        answer = client.chat.completions.parse(**ask(seed, temperature=1), response_format=Herd)
    except openai.LengthFinishReasonError:
        continue  # a model of random weights indents as it likes
    herd = answer.choices[0].message.parsed
    assert isinstance(herd, Herd) and len(herd.beasts) <= 3, answer
    filled += 1
assert filled > 3, f"{filled} of 8 forms were filled in 220 tokens"

for seed in range(4):
    form = {"type": "json_schema", "json_schema": {"name": "beast", "schema": Beast.model_json_schema()}}
    with client.chat.completions.create(**ask(seed), response_format=form, stream=True) as stream:
        chunks = list(stream)
    if chunks[-1].choices[0].finish_reason == "stop":
        Beast.model_validate_json("".join(c.choices[0].delta.content or "" for c in chunks))
        filled += 1
    answer = client.chat.completions.create(**ask(seed), response_format={"type": "json_object"}).choices[0]
    if answer.finish_reason == "stop":
        assert isinstance(json.loads(answer.message.content), dict), answer
        filled += 1
    answer = client.chat.completions.create(**ask(seed), response_format={"type": "text"}).choices[0]
    outputs = {"structured_outputs": {"choice": ["yes", "no"]}}
    assert client.chat.completions.create(**ask(seed), extra_body=outputs).choices[0].message.content in ["yes", "no"]
    outputs = {"structured_outputs": {"regex": "[0-9]{4}-[0-9]{2}(-[0-9]{2})?"}}
    dates = client.completions.create(model="m", prompt="x", seed=seed, n=3, max_tokens=20, extra_body=outputs).choices
    assert all(re.fullmatch(outputs["structured_outputs"]["regex"], c.text) for c in dates), dates
assert filled > 7, f"{filled} of 16 forms were filled in 220 tokens"


def schema(schema):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


WRONG = [
    (schema({"type": "nothing"}), "response_format.json_schema.schema"),
    (schema({"$ref": "http://127.0.0.1/x"}), "response_format.json_schema.schema"),
    (schema(3), "response_format.json_schema.schema"),
    (schema({"type": "string", "pattern": "("}), "response_format.json_schema.schema"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {}}, "response_format.type"),
    ({"response_format": "json_object"}, "response_format"),
    ({"response_format": {"type": "json_object", "more": 1}}, "response_format.more"),
    ({"structured_outputs": {"regex": "(a"}}, "structured_outputs.regex"),
    ({"structured_outputs": {"regex": "a(?=b)"}}, "structured_outputs.regex"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ({"structured_outputs": {"choice": [""]}}, "structured_outputs.choice"),
    ({"structured_outputs": {"choice": "yes"}}, "structured_outputs.choice"),
    ({"structured_outputs": {"grammar": "root ::= x"}}, "structured_outputs.grammar"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs"),
    ({"guided_regex": "a"}, "guided_regex"),
]
for body, field in WRONG:
    try:
        client.chat.completions.create(**ask(0), extra_body=body)
        sys.exit(f"{body} was taken")
    except openai.BadRequestError as e:
        assert e.body["param"] == field and "\n" not in e.body["message"], (body, e.body)
    bare = client.chat.completions.with_raw_response.create
    assert bare(**ask(0, temperature=0)).http_response.status_code == 200, "the server goes on"
print("all as expected")
