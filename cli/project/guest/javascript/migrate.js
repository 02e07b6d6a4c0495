// The app's migrate() behind its fetch handler: asked once for each release, before visitors come, on a copy of its data.
const PATH = "/.freehold/migrate"; // no visitor's request has such a path

function migrationOf(app) {
  return typeof app?.migrate === "function" ? app.migrate : app?.default?.migrate?.bind(app.default);
}

async function answer(migrate, env, context) {
  try {
    await migrate(env, context);
  } catch (error) {
    console.error(error);
    return new Response(String(error?.stack ?? error), { status: 500 });
  }
  return new Response(null, { status: 204 });
}

// Returns the handler that has the app migrate when the node asks, if it can, and gives all else to `handler`.
export function withMigration(app, handler) {
  const migrate = migrationOf(app);
  if (typeof migrate !== "function" || !handler) return handler;
  return (request, ...rest) =>
    new URL(request.url).pathname === PATH ? answer(migrate, ...rest) : handler(request, ...rest);
}
