"""A user's filter full of mistakes: each marked line must be an error of this code; see test_user_filters.py."""

from fastmilter import Answer, Filter, Params, Verdict, reply


class Score:
    points = 0


class Wrong(Filter[Score]):
    error_verdict = "tempfail"  # type: ignore[assignment]
    deadline = "5 s"  # type: ignore[assignment]

    def on_mail(self, sender: int, params: Params) -> Verdict | None:  # type: ignore[override]
        return None

    def on_helo(self, name: str) -> str:  # type: ignore[override]
        return "reject"

    def on_body(self, chunk: str) -> None:  # type: ignore[override]
        self.message.state.score = 5  # type: ignore[attr-defined]
        self.message.state = "x"  # type: ignore[assignment]

    def on_end_of_message(self) -> Verdict | None:
        self.message.add_header("X", 5)  # type: ignore[arg-type]
        self.message.delete_header("X")  # type: ignore[call-arg]
        self.message.replace_body("text")  # type: ignore[arg-type]
        self.message.sender = "a@b"  # type: ignore[misc, assignment]
        print(self.connection.hostnam)  # type: ignore[attr-defined]
        reply("550", None, "no")  # type: ignore[arg-type]
        raise Answer("reject")  # type: ignore[arg-type]

    async def on_close(self) -> Verdict:  # type: ignore[override]
        return reply(550, None, "no")
