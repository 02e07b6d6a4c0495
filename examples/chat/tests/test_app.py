"""The room's own rules, without the sandbox: databases are in memory here."""

import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "web"))

import app


class Room(unittest.TestCase):
    def setUp(self):
        room = app.opened()
        with room:
            room.execute("DELETE FROM said")

    def test_messages_are_numbered_and_one_that_is_said_twice_keeps_its_number(self):
        self.assertEqual([app.kept(name, "hello")["number"] for name in ("a", "b", "a", "c")], [1, 2, 1, 3])

    def test_who_comes_back_hears_what_came_after_and_not_all_at_once(self):
        for number in range(app.AT_ONCE + 3):
            app.kept(f"id{number}", str(number))
        self.assertEqual([one["text"] for one in app.after(app.AT_ONCE)], ["100", "101", "102"])
        self.assertEqual(len(app.after(0)), app.AT_ONCE)


if __name__ == "__main__":
    unittest.main()
