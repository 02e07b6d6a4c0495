// The @NAME@ app: Express, as anywhere. In the sandbox the port does not matter; `node web/app.js` serves it outside.
import express from "express";
import { config, store } from "./freehold.js";

const app = express();
app.use(express.json());

app.get("/", (request, response) => {
  const visit = store("visits").increment("count");
  response.type("text").send(`${config.get("GREETING", "hello")} from @NAME@, visit ${visit}\n`);
});

app.get("/api/visits", (request, response) => {
  response.json({ visits: Number(store("visits").getText("count") ?? 0) });
});

app.post("/api/echo", (request, response) => {
  response.json(request.body);
});

export const server = app.listen(process.env.PORT ?? 3000);
