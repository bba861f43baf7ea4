"""Telling the owner of a run how it ended, by whatever apprise can reach: mail, Slack, Discord, Telegram, and more.

addresses.py  where to: `notify.yaml` in the project's folder, or the environment
message.py    what is told of a run
send.py       telling it; one that fails is only mentioned
"""
