"""The official client against a served model that says "Hi": python openai_client.py BASE_URL TOKEN"""

import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key=sys.argv[2], max_retries=0)
assert [m.id for m in client.models.list()][:2] == ["hi", "talker"]
ask = {"model": "hi", "messages": [{"role": "user", "content": "?"}], "temperature": 0}

answer = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2)
choice = answer.choices[0]
assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "Hi", "stop"), answer
assert [t.token for t in choice.logprobs.content] == ["H", "i"] and len(choice.logprobs.content[0].top_logprobs) == 2
assert (answer.usage.completion_tokens, answer.object) == (3, "chat.completion"), answer

chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
assert chunks[0].choices[0].delta.role == "assistant", chunks[0]
assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == "Hi"
assert chunks[-2].choices[0].finish_reason == "stop" and chunks[-1].usage == answer.usage, chunks[-2:]

text = client.completions.create(model="talker", prompt=["?\n", "\n"], max_tokens=5, temperature=0, logprobs=1, echo=True)
assert [c.text for c in text.choices] == ["?\nHi", "\nHi"], text
assert text.choices[0].logprobs.token_logprobs[0] is None and len(text.choices[0].logprobs.tokens) == 5, text
pieces = client.completions.create(model="hi", prompt="\n", max_tokens=5, temperature=0, stream=True)
assert "".join(c.choices[0].text for c in pieces) == "Hi"

# A stream that is closed half-way.
with client.completions.create(model="hi", prompt="\n", max_tokens=100, stream=True, extra_body={"ignore_eos": True}) as s:
    next(iter(s))

for wrong, kind in [({"model": "gpt-4"}, openai.NotFoundError), ({"temperature": -1}, openai.BadRequestError)]:
    try:
        client.chat.completions.create(**{**ask, **wrong})
        sys.exit(f"{wrong} was taken")
    except kind as e:
        assert e.body["param"] == next(iter(wrong)), e.body
try:
    openai.OpenAI(base_url=sys.argv[1], api_key="x", max_retries=0).models.list()
    sys.exit("a wrong token was taken")
except openai.AuthenticationError:
    pass
print("all as expected")
