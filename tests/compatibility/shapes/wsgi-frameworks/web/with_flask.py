from flask import Flask, redirect, request, session, url_for
from markupsafe import escape
from werkzeug.security import check_password_hash, generate_password_hash

app = Flask(__name__)
app.secret_key = "for a test only"


@app.get("/hello/<name>")
def hello(name):
    return f"<p>Hello, {escape(name)}!</p>"


@app.post("/login")
def login():
    session["name"] = request.form["name"]
    return redirect(url_for("hello", name=session["name"]))


@app.get("/password")
def password():
    methods = [{}, {"method": "pbkdf2"}, {"method": "pbkdf2:sha512:1000"}]
    return str([check_password_hash(generate_password_hash("a", **one), given) for one in methods for given in "ab"])
