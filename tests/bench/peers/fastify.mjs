import Fastify from 'fastify'
import { port, queue } from './queue.mjs'

const app = Fastify()
app.post('/*', async (request) => {
  await queue.add('callback', request.body)
  return { received: true }
})
await app.listen({ host: '127.0.0.1', port })
