import falcon


class Things:
    def on_get(self, req, resp):
        resp.content_type = falcon.MEDIA_TEXT
        resp.text = "Two things awe me most"


app = falcon.App()
app.add_route("/things", Things())
